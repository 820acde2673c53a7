//! Call stacks as reports show them. Taking them is somebody else's.

/// A stack that was taken.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct StackId(pub u32);

/// One frame of a stack; what is not known is left out.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Frame {
    /// Where the frame goes on.
    pub address: u64,
    /// The file that the code is from.
    pub module: String,
    /// The function.
    pub function: Option<String>,
    /// The source file.
    pub file: Option<String>,
    /// The line in it, from 1.
    pub line: Option<u32>,
}
