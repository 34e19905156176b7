//! The suite stands in `suite/`; this library is empty.
