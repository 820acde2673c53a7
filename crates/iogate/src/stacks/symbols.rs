//! From places in files to functions and lines.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use addr2line::Loader;
use iogate_checker::Frame;

use super::capture::{Capture, Module, Place};
use super::elf::Segments;

/// Frames of one stack.
const MOST_FRAMES: usize = 64;

/// The files that have been asked about.
#[derive(Default)]
pub(super) struct Symbols(HashMap<Arc<Module>, Option<Program>>);

struct Program {
    segments: Segments,
    loader: Loader,
}

impl Program {
    /// Opens the file, if it is still the one that was mapped.
    fn open(module: &Module) -> Option<Self> {
        let path = Path::new(&module.path);
        if path.metadata().ok()?.ino() != module.inode {
            return None;
        }
        Some(Self {
            segments: Segments::read(path)?,
            loader: Loader::new(path).ok()?,
        })
    }
}

impl Symbols {
    /// The frames of a stack, innermost first.
    pub(super) fn frames(&mut self, capture: &Capture) -> Vec<Frame> {
        let mut frames = Vec::new();
        for (depth, place) in capture.iter().enumerate() {
            // A call is before the address that it returns to.
            frames.extend(self.describe(place, u64::from(depth > 0)));
        }
        frames.truncate(MOST_FRAMES);
        frames
    }

    fn program(&mut self, module: &Arc<Module>) -> Option<&Program> {
        let program = self.0.entry(Arc::clone(module));
        program.or_insert_with(|| Program::open(module)).as_ref()
    }

    /// The symbol that covers a place, as it is in the file.
    fn function(&mut self, place: &Place, back: u64) -> Option<String> {
        let program = self.program(&place.module)?;
        let address = program.segments.address(place.offset)?.checked_sub(back)?;
        program.loader.find_symbol(address).map(str::to_owned)
    }

    /// A place in words; functions that were inlined there come first.
    fn describe(&mut self, place: &Place, back: u64) -> Vec<Frame> {
        let bare = Frame {
            address: place.address,
            module: place.module.path.clone(),
            ..Frame::default()
        };
        let symbol = self.function(place, back).map(|name| demangled(&name));
        let Some(program) = self.program(&place.module) else {
            return vec![bare];
        };
        let address = program.segments.address(place.offset);
        let mut found = Vec::new();
        if let Some(address) = address.and_then(|address| address.checked_sub(back))
            && let Ok(mut inlined) = program.loader.find_frames(address)
        {
            while let Ok(Some(frame)) = inlined.next() {
                let name = frame.function.and_then(|function| {
                    let name = function.raw_name().ok()?;
                    Some(demangled(&name))
                });
                let place = frame.location;
                found.push(Frame {
                    function: name,
                    file: place
                        .as_ref()
                        .and_then(|place| place.file.map(str::to_owned)),
                    line: place.and_then(|place| place.line),
                    ..bare.clone()
                });
            }
        }
        match found.last_mut() {
            Some(outermost) => {
                outermost.function = outermost.function.take().or(symbol);
                found
            }
            None => vec![Frame {
                function: symbol,
                ..bare
            }],
        }
    }
}

fn demangled(name: &str) -> String {
    format!("{:#}", rustc_demangle::demangle(name))
}
