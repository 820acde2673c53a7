//! The `iogate` command.
fn main() {}
