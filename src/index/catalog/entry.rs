//! A description as a row of the mirror has it.
