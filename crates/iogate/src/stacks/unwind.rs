//! Frames by the call frame information of a program's files. System V ABI,
//! AMD64 supplement, section 3.7; Linux Standard Base 5.0, section 10.6.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use gimli::{
    BaseAddresses, CfaRule, EhFrame, EhFrameHdr, LittleEndian, RegisterRule, UnwindContext,
    UnwindSection, X86_64,
};
use object::read::ReadCache;
use object::{Object, ObjectSection};

use super::capture::Module;
use super::elf::Segments;

/// What one file tells of its functions' frames.
pub(super) struct Unwinder {
    segments: Segments,
    frames: (u64, Vec<u8>),
    /// Statically linked programs have none.
    index: Option<(u64, Vec<u8>)>,
}

/// How the frame of a function is found at one of its instructions.
pub(super) struct Row {
    /// Where the function begins, in the addresses of its file.
    pub(super) begin: u64,
    pub(super) frame: Base,
    /// Where the caller's frame pointer is, from the frame on; `None` if the
    /// register holds it still.
    pub(super) pointer: Option<i64>,
}

/// What a frame is counted from.
pub(super) enum Base {
    Stack(i64),
    Pointer(i64),
}

impl Unwinder {
    /// Reads the file, if it is still the one that was mapped.
    fn read(module: &Module) -> Option<Self> {
        let path = std::path::Path::new(&module.path);
        if path.metadata().ok()?.ino() != module.inode {
            return None;
        }
        let cache = ReadCache::new(File::open(path).ok()?);
        let file = object::File::parse(&cache).ok()?;
        let section = |name| {
            let section = file.section_by_name(name)?;
            let data = section.uncompressed_data().ok()?.into_owned();
            Some((section.address(), data))
        };
        Some(Self {
            segments: Segments::read(path)?,
            frames: section(".eh_frame")?,
            index: section(".eh_frame_hdr"),
        })
    }

    /// The address in the file of the byte at this offset.
    pub(super) fn address(&self, offset: u64) -> Option<u64> {
        self.segments.address(offset)
    }

    /// The row for an address in the file.
    pub(super) fn row(&self, address: u64) -> Option<Row> {
        let bases = BaseAddresses::default()
            .set_eh_frame(self.frames.0)
            .set_eh_frame_hdr(self.index.as_ref().map_or(0, |index| index.0));
        let frames = EhFrame::new(&self.frames.1, LittleEndian);
        let index = self
            .index
            .as_ref()
            .and_then(|(_, index)| EhFrameHdr::new(index, LittleEndian).parse(&bases, 8).ok());
        let fde = match index.as_ref().and_then(|index| index.table()) {
            Some(table) => {
                table.fde_for_address(&frames, &bases, address, EhFrame::cie_from_offset)
            }
            None => frames.fde_for_address(&bases, address, EhFrame::cie_from_offset),
        };
        let fde = fde.ok()?;
        let mut context = UnwindContext::new();
        let row = fde
            .unwind_info_for_address(&frames, &bases, &mut context, address)
            .ok()?;
        let frame = match row.cfa() {
            CfaRule::RegisterAndOffset { register, offset } if *register == X86_64::RSP => {
                Base::Stack(*offset)
            }
            CfaRule::RegisterAndOffset { register, offset } if *register == X86_64::RBP => {
                Base::Pointer(*offset)
            }
            _ => return None,
        };
        let pointer = match row.register(X86_64::RBP) {
            Some(RegisterRule::Offset(offset)) => Some(offset),
            _ => None,
        };
        Some(Row {
            begin: fde.initial_address(),
            frame,
            pointer,
        })
    }
}

/// The files that have been read.
#[derive(Default)]
pub(super) struct Unwinders(HashMap<Arc<Module>, Option<Arc<Unwinder>>>);

impl Unwinders {
    pub(super) fn of(&mut self, module: &Arc<Module>) -> Option<Arc<Unwinder>> {
        let known = self.0.entry(Arc::clone(module));
        known
            .or_insert_with(|| Unwinder::read(module).map(Arc::new))
            .clone()
    }
}
