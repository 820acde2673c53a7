//! What is read of a waiting thread.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::unwind::{Base, Unwinders};

/// Bytes of a stack that are looked at.
const DEPTH: u64 = 16 << 10;

/// Frames of a stack.
const MOST: usize = 64;

/// An instruction in a mapped file.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Place {
    /// Its address in the process.
    pub(super) address: u64,
    /// Where it is in the file.
    pub(super) offset: u64,
    pub(super) module: Arc<Module>,
}

/// A mapped file, as the list of mappings has it.
#[derive(PartialEq, Eq, Hash, Debug)]
pub(super) struct Module {
    pub(super) path: String,
    pub(super) inode: u64,
}

/// A stack as it was: where its frames go on, innermost first.
pub(super) type Capture = Vec<Place>;

/// A mapping that can be executed.
struct Code {
    start: u64,
    end: u64,
    offset: u64,
    module: Arc<Module>,
}

/// The stack of a thread that waits in a system call; `None` if it does not,
/// or may not be looked at.
pub(super) fn of(process: u32, thread: u32, unwinders: &mut Unwinders) -> Option<Capture> {
    let call = fs::read_to_string(format!("/proc/{process}/task/{thread}/syscall")).ok()?;
    let (sp, at) = registers(&call)?;
    let maps = fs::read_to_string(format!("/proc/{process}/maps")).ok()?;
    let (code, end) = parse(&maps, sp);
    let memory = File::open(format!("/proc/{process}/mem")).ok()?;
    let length = end.saturating_sub(sp).min(DEPTH);
    let mut bytes = vec![0; usize::try_from(length).ok()?];
    memory.read_exact_at(&mut bytes, sp).ok()?;
    let walk = Walk {
        stack: &Stack { base: sp, bytes },
        code: &code,
        memory: &memory,
        unwinders,
    };
    walk.frames(sp, at)
}

/// The innermost part of a stack.
struct Stack {
    base: u64,
    bytes: Vec<u8>,
}

impl Stack {
    fn word(&self, address: u64) -> Option<u64> {
        let at = usize::try_from(address.checked_sub(self.base)?).ok()?;
        let word = self.bytes.get(at..)?.first_chunk()?;
        Some(u64::from_le_bytes(*word))
    }

    fn holds(&self, address: u64) -> bool {
        self.word(address).is_some()
    }
}

/// A walk from frame to frame.
struct Walk<'w> {
    stack: &'w Stack,
    code: &'w [Code],
    memory: &'w File,
    unwinders: &'w mut Unwinders,
}

impl Walk<'_> {
    /// The frames from the innermost on, as far as they are certain.
    fn frames(mut self, mut sp: u64, at: u64) -> Option<Capture> {
        let mut frames = vec![place(self.code, at)?];
        let mut pointer = None;
        while frames.len() < MOST {
            let Some((next, frame, caller)) =
                self.caller(frames.last()?, frames.len(), sp, pointer)
            else {
                break;
            };
            frames.push(next);
            (sp, pointer) = (frame, caller);
        }
        Some(frames)
    }

    /// The place that a frame returns to, the stack pointer there, and the
    /// frame pointer, if it is known.
    fn caller(
        &mut self,
        inner: &Place,
        depth: usize,
        sp: u64,
        pointer: Option<u64>,
    ) -> Option<(Place, u64, Option<u64>)> {
        let unwinder = self.unwinders.of(&inner.module)?;
        // A return address may be the first byte of the next function.
        let back = u64::from(depth > 1);
        let row = unwinder.row(unwinder.address(inner.offset)?.checked_sub(back)?)?;
        let frame = match (&row.frame, pointer) {
            (Base::Stack(offset), _) => sp.checked_add_signed(*offset)?,
            (Base::Pointer(offset), Some(pointer)) => pointer.checked_add_signed(*offset)?,
            (Base::Pointer(_), None) => self.look_for_frame(inner, row.begin, sp)?,
        };
        // Frames grow towards the stack's beginning.
        if frame <= sp {
            return None;
        }
        let to = self.stack.word(frame.checked_sub(8)?)?;
        let caller = match row.pointer {
            Some(offset) => self.stack.word(frame.checked_add_signed(offset)?),
            None => pointer,
        };
        Some((place(self.code, to)?, frame, caller))
    }

    /// The frame of a function that begins at `begin` and keeps it in the
    /// frame pointer, whose value nobody knows yet: above `sp` the first return
    /// address of a call that leads there, with a frame pointer below it.
    fn look_for_frame(&mut self, inner: &Place, begin: u64, sp: u64) -> Option<u64> {
        let mut at = sp.checked_next_multiple_of(8)?;
        while let Some(word) = self.stack.word(at) {
            let frame = at.checked_add(8)?;
            if self.leads(word, inner, begin) {
                let below = at.checked_sub(8).and_then(|below| self.stack.word(below));
                let is_pointer = below.is_some_and(|pointer| {
                    pointer > at && pointer % 8 == 0 && self.stack.holds(pointer)
                });
                let outside = place(self.code, word).is_some_and(|to| to.module != inner.module);
                if is_pointer || outside {
                    return Some(frame);
                }
            }
            at = frame;
        }
        None
    }

    /// Whether `to` follows a call that leads to the function of `inner`,
    /// which begins at `begin`, or may lead anywhere.
    fn leads(&mut self, to: u64, inner: &Place, begin: u64) -> bool {
        let Some(to_place) = place(self.code, to) else {
            return false;
        };
        let mut before = [0; 7];
        let read = self.memory.read_exact_at(&mut before, to.saturating_sub(7));
        let called = read.ok().and_then(|()| call_before(to, before));
        match called {
            None => false,
            Some(None) => true,
            Some(Some(_)) if to_place.module != inner.module => true,
            Some(Some(callee)) => {
                let callee = place(self.code, callee);
                let unwinder = self.unwinders.of(&inner.module);
                let address = callee.and_then(|callee| unwinder?.address(callee.offset));
                address == Some(begin)
            }
        }
    }
}

/// Stack pointer and instruction pointer. proc_pid_syscall(5).
fn registers(call: &str) -> Option<(u64, u64)> {
    let mut last = call.split_ascii_whitespace().rev();
    let mut hex = || u64::from_str_radix(last.next()?.strip_prefix("0x")?, 16).ok();
    let at = hex()?;
    Some((hex()?, at))
}

/// The code of a process, and the end of the mapping that `stack` is in.
/// proc_pid_maps(5).
fn parse(maps: &str, stack: u64) -> (Vec<Code>, u64) {
    let mut code: Vec<Code> = Vec::new();
    let mut end_of_stack = stack;
    for line in maps.lines() {
        let mut fields = line.splitn(6, ' ');
        let mut field = || fields.next().unwrap_or_default();
        let (range, rights, offset, _, inode, path) =
            (field(), field(), field(), field(), field(), field());
        let hex = |text: &str| u64::from_str_radix(text, 16).ok();
        let Some((start, end)) = range.split_once('-') else {
            continue;
        };
        let (Some(start), Some(end), Some(offset)) = (hex(start), hex(end), hex(offset)) else {
            continue;
        };
        if (start..end).contains(&stack) {
            end_of_stack = end;
        }
        if rights.contains('x') {
            let module = Module {
                path: path.trim_start().to_owned(),
                inode: inode.parse().unwrap_or_default(),
            };
            let known = code.iter().find(|code| *code.module == module);
            code.push(Code {
                start,
                end,
                offset,
                module: known.map_or_else(|| Arc::new(module), |code| Arc::clone(&code.module)),
            });
        }
    }
    (code, end_of_stack)
}

fn place(code: &[Code], address: u64) -> Option<Place> {
    let code = code
        .iter()
        .find(|code| (code.start..code.end).contains(&address))?;
    Some(Place {
        address,
        offset: code
            .offset
            .saturating_add(address.saturating_sub(code.start)),
        module: Arc::clone(&code.module),
    })
}

/// Whether the 7 bytes before `address` end in a call, and what it calls if it
/// is a direct one. Intel SDM volume 2A, CALL: E8 cd, FF /2.
fn call_before(address: u64, before: [u8; 7]) -> Option<Option<u64>> {
    let [_, _, 0xe8, distance @ ..] = before else {
        return indirect_call(before).then_some(None);
    };
    let distance = i64::from(i32::from_le_bytes(distance));
    Some(Some(address.wrapping_add_signed(distance)))
}

fn indirect_call(before: [u8; 7]) -> bool {
    (2..=7).any(|length| {
        let call = before.get(before.len().saturating_sub(length)..);
        match call {
            Some([0xff, modrm, rest @ ..]) if modrm >> 3 & 7 == 2 => {
                let base = rest.first().map_or(0, |sib| sib & 7);
                length == 2 + operand_bytes(*modrm, base)
            }
            _ => false,
        }
    })
}

/// Bytes after the ModRM byte; `base` is that of the SIB byte, if there is one.
/// Intel SDM volume 2A, tables 2-2 and 2-3.
fn operand_bytes(modrm: u8, base: u8) -> usize {
    let sib = usize::from(modrm & 7 == 4);
    match modrm >> 6 {
        0 if modrm & 7 == 5 || (sib == 1 && base == 5) => sib + 4,
        0 => sib,
        1 => sib + 1,
        2 => sib + 4,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_known_by_their_bytes() {
        // call next+0x10; call *%rax; call *0x8(%rax); call *0x0(%rip);
        // call *(%rsp); nops.
        let cases: [(&[u8], _); 6] = [
            (&[0xe8, 0x10, 0, 0, 0], Some(Some(0x1010))),
            (&[0xff, 0xd0], Some(None)),
            (&[0xff, 0x50, 0x08], Some(None)),
            (&[0xff, 0x15, 0, 0, 0, 0], Some(None)),
            (&[0xff, 0x14, 0x24], Some(None)),
            (&[0x90, 0x90, 0x90], None),
        ];
        for (bytes, expected) in cases {
            let mut before = [0x90; 7];
            before[7 - bytes.len()..].copy_from_slice(bytes);
            assert_eq!(call_before(0x1000, before), expected, "{bytes:x?}");
        }
    }

    #[test]
    fn a_list_of_mappings_is_read() {
        let maps = "1000-3000 r-xp 00002000 fe:00 77    /usr/lib/a b.so\n\
                    7000-8000 rw-p 00000000 00:00 0 \n";
        let (code, end) = parse(maps, 0x7100);
        assert_eq!((code.len(), end), (1, 0x8000));
        let found = place(&code, 0x1010).unwrap();
        assert_eq!((found.offset, found.module.inode), (0x2010, 77));
        assert_eq!(found.module.path, "/usr/lib/a b.so");
        assert!(place(&code, 0x7000).is_none());
    }

    #[test]
    fn the_last_two_numbers_are_stack_and_instruction() {
        let call = "16 0x3 0x3b71 0x7ffd 0x0 0x0 0x0 0x7ffc10 0x7f0020\n";
        assert_eq!(registers(call), Some((0x7f_fc10, 0x7f_0020)));
        assert_eq!(registers("running\n"), None);
    }
}
