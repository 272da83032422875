//! Failures that were found once, in as few steps as they take.
