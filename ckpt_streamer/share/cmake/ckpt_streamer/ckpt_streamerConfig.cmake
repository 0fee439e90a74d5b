# Gives the target ckpt_streamer::ckpt_streamer, which links torch:
#
#   find_package(ckpt_streamer REQUIRED)
#   target_link_libraries(reader PRIVATE ckpt_streamer::ckpt_streamer)
#
# with -DCMAKE_PREFIX_PATH="$(python -c
# 'import ckpt_streamer; print(ckpt_streamer.cmake_prefix_path())')". torch is
# looked for there as well, then beside this package.
get_filename_component(_ckpt_streamer_root "${CMAKE_CURRENT_LIST_DIR}/../../.." ABSOLUTE)
get_filename_component(_ckpt_streamer_beside "${_ckpt_streamer_root}/.." ABSOLUTE)

if(NOT Torch_FOUND)
  include(CMakeFindDependencyMacro)
  find_dependency(Torch PATHS "${_ckpt_streamer_beside}/torch/share/cmake/Torch")
endif()

# torch's C++ interface changes with each minor release.
file(READ "${_ckpt_streamer_root}/lib/compiled_for_torch.txt" _ckpt_streamer_torch)
string(REGEX MATCH "^[0-9]+\\.[0-9]+" _ckpt_streamer_minor "${_ckpt_streamer_torch}")
if(NOT "${Torch_VERSION}" MATCHES "^${_ckpt_streamer_minor}\\.")
  set(ckpt_streamer_FOUND FALSE)
  set(ckpt_streamer_NOT_FOUND_MESSAGE
      "ckpt_streamer was compiled for torch ${_ckpt_streamer_torch}, and this is \
torch ${Torch_VERSION}: install ckpt_streamer again")
  return()
endif()

if(NOT TARGET ckpt_streamer::ckpt_streamer)
  set(_ckpt_streamer_library "${_ckpt_streamer_root}/lib/libckpt_streamer.so")
  # A program that calls the ops by their names refers to none of its symbols.
  set(_ckpt_streamer_kept "")
  if(NOT APPLE)
    set(_ckpt_streamer_kept
        "-Wl,--push-state,--no-as-needed,${_ckpt_streamer_library},--pop-state")
  endif()
  add_library(ckpt_streamer::ckpt_streamer SHARED IMPORTED)
  set_target_properties(
    ckpt_streamer::ckpt_streamer
    PROPERTIES
      IMPORTED_LOCATION "${_ckpt_streamer_library}"
      INTERFACE_INCLUDE_DIRECTORIES "${_ckpt_streamer_root}/include"
      INTERFACE_COMPILE_FEATURES cxx_std_20
      INTERFACE_LINK_LIBRARIES "${_ckpt_streamer_kept};${TORCH_LIBRARIES}")
endif()
