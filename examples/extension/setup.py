"""The same as a package: ``pip install --no-build-isolation .``"""

from setuptools import setup
from torch.utils.cpp_extension import BuildExtension, CppExtension

import ckpt_streamer

setup(
    name="checkpoint_statistics",
    version="1.0",
    packages=[],
    ext_modules=[
        CppExtension(
            name="checkpoint_statistics",
            sources=["largest.cpp"],
            include_dirs=ckpt_streamer.include_paths(),
            library_dirs=ckpt_streamer.library_paths(),
            libraries=["ckpt_streamer"],
            extra_compile_args=["-std=c++20"],
            py_limited_api=True,
        )
    ],
    cmdclass={"build_ext": BuildExtension.with_options(no_python_abi_suffix=True)},
)
