"""Files made to do harm, and what each is answered with."""
