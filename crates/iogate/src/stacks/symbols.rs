//! From places in files to functions and lines.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use addr2line::Loader;
use iogate_checker::Frame;

use super::capture::{Capture, Module, Place, Return};
use super::elf::Segments;

/// Frames of one stack.
const MOST_FRAMES: usize = 32;

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
    /// The frames of a stack, innermost first. Addresses that are left from
    /// calls that have returned are passed over where they can be told.
    pub(super) fn frames(&mut self, capture: &Capture) -> Vec<Frame> {
        let mut frames = self.describe(&capture.at, 0);
        let mut inner = capture.at.clone();
        let mut rest = &capture.returns[..];
        while frames.len() < MOST_FRAMES && !is_outermost(frames.last()) {
            let fits = rest.iter().position(|one| self.fits(one, &inner));
            let Some((found, later)) = rest.get(fits.unwrap_or(0)..).and_then(<[_]>::split_first)
            else {
                break;
            };
            inner = found.place.clone();
            // The call is before the address that it returns to.
            frames.extend(self.describe(&inner, 1));
            rest = later;
        }
        frames.truncate(MOST_FRAMES);
        frames
    }

    /// Whether a return address may well belong to the frame before it: its
    /// call leads to that frame's function or, maybe by way of a linkage
    /// table, into another file, or it is an indirect call of a function that
    /// is known.
    fn fits(&mut self, one: &Return, inner: &Place) -> bool {
        let Some(callee) = &one.callee else {
            return self.function(&one.place, 1).is_some();
        };
        if one.place.module != inner.module {
            return true;
        }
        let callee = self.function(callee, 0);
        callee.is_some() && callee == self.function(inner, 0)
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

/// Whether a program or a thread begins there.
fn is_outermost(frame: Option<&Frame>) -> bool {
    let name = frame.and_then(|frame| frame.function.as_deref());
    matches!(
        name,
        Some("main" | "_start" | "start_thread" | "clone3" | "__libc_start_call_main")
    )
}

fn demangled(name: &str) -> String {
    format!("{:#}", rustc_demangle::demangle(name))
}
