//! One faulting access: which register it wants, and its execution there.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use iogate_dma::MemoryError;
use iogate_host::{Actor, FileId};
use iogate_memory::{Process, Vma};
use iogate_uapi::{self as uapi, Answer, Errno};
use iogate_x86::{
    Inaccessible, LONGEST, Layout, Memory, Stopped, Vector, Vectors, Xsave, execute, is_whole,
};

use super::restore::restore;
use super::trace::{AREA, Task};
use crate::core::{Core, Rest};
use crate::filter::Unmapping;
use crate::thread::Inode;

/// What became of an access.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    /// It was executed; the program goes on behind it.
    Executed,
    /// It is none of ours, or the device does not answer: the program gets its
    /// signal.
    Passed,
    /// The instruction also wanted ordinary memory, which is not there.
    Absent(u64),
    /// The program cannot go on, for this reason.
    Impossible(String),
}

/// The process that a task is of.
struct Program {
    /// Its number.
    id: u32,
    memory: Process,
}

/// A mapping of a device that a task has.
struct Known {
    task: Task,
    program: Arc<Program>,
    vma: Vma,
    file: FileId,
}

/// Mappings known at a time.
const MOST_KNOWN: usize = 16;

/// Executes accesses.
pub(crate) struct Accesses {
    core: Arc<Core>,
    programs: HashMap<Task, Arc<Program>>,
    /// The mappings that were accessed last, as long as none has changed.
    known: Vec<Known>,
    /// Changes of mappings that were noticed when those were looked up; `None`
    /// if changes are not noticed.
    changes: Option<u64>,
    layout: Layout,
    area: Box<[u8; AREA]>,
}

impl Accesses {
    pub(crate) fn new(core: Arc<Core>, unmapping: Unmapping) -> Self {
        Self {
            core,
            programs: HashMap::new(),
            known: Vec::new(),
            changes: (unmapping == Unmapping::Noticed).then_some(0),
            layout: Layout::of_processor(),
            area: Box::new([0; AREA]),
        }
    }

    /// Forgets a task that has ended or executes another program.
    pub(crate) fn forget(&mut self, task: Task) {
        self.programs.remove(&task);
        self.known.clear();
    }

    /// Executes the instruction that `task` is stopped at, which faulted at
    /// `address`.
    pub(crate) fn run(&mut self, task: Task, address: u64) -> io::Result<Outcome> {
        let Some((program, vma, file)) = self.known(task, address)? else {
            return Ok(Outcome::Passed);
        };
        let mut user = task.registers()?;
        let core = &self.core;
        let wanted = || wanted(core, file, vma.file_offset(address).unwrap_or_default());
        if !user.is_64_bit() {
            let text = format!("a 32-bit program cannot access {}", wanted());
            return Ok(Outcome::Impossible(text));
        }
        let before = user.to_registers();
        let code = code(task, &program.memory, before.rip);
        let mut registers = before;
        let mut bus = Bus {
            core: &self.core,
            process: &program.memory,
            by: Actor {
                process: program.id,
                thread: task.number(),
            },
            device: (vma, file),
            other: None,
            refused: false,
        };
        let mut vectors = Fetched {
            task,
            layout: self.layout,
            area: &mut self.area,
            length: None,
            changed: false,
        };
        let executed = execute(&code, &mut registers, &mut vectors, &mut bus);
        let refused = bus.refused;
        vectors.put_back()?;
        if registers != before {
            user.set(&registers);
            task.set_registers(&user)?;
        }
        if executed.is_ok() {
            // Without that the program goes on too.
            let _ = restore(task, program.id, &program.memory, &self.core.bus_errors);
        }
        Ok(match executed {
            Ok(_) => Outcome::Executed,
            Err(Stopped::Inaccessible(_)) if refused => Outcome::Passed,
            Err(Stopped::Inaccessible(Inaccessible(address))) => Outcome::Absent(address),
            Err(Stopped::Unknown(unknown)) => Outcome::Impossible(format!(
                "the instruction `{}` at {:#x} cannot be executed on {}",
                unknown.text,
                before.rip,
                wanted(),
            )),
        })
    }

    /// The mapping of a device that `address` lies in, its file, and the
    /// process that has it; `None` if it lies in no such.
    fn known(
        &mut self,
        task: Task,
        address: u64,
    ) -> io::Result<Option<(Arc<Program>, Vma, FileId)>> {
        let changes = self.core.remapped.load(Ordering::SeqCst);
        if self.changes != Some(changes) {
            self.known.clear();
            self.changes = self.changes.map(|_| changes);
        }
        let mut known = self.known.iter();
        let known =
            known.find(|known| known.task == task && known.vma.file_offset(address).is_some());
        if let Some(known) = known {
            return Ok(Some((Arc::clone(&known.program), known.vma, known.file)));
        }
        let Some((program, vma)) = self.mapping(task, address)? else {
            return Ok(None);
        };
        let Some(file) = file_of(&self.core, &vma) else {
            return Ok(None);
        };
        if self.changes.is_some() {
            if self.known.len() >= MOST_KNOWN {
                self.known.clear();
            }
            self.known.push(Known {
                task,
                program: Arc::clone(&program),
                vma,
                file,
            });
        }
        Ok(Some((program, vma, file)))
    }

    /// The mapping that `address` lies in, and the process that has it.
    fn mapping(&mut self, task: Task, address: u64) -> io::Result<Option<(Arc<Program>, Vma)>> {
        if let Some(program) = self.programs.get(&task) {
            match program.memory.vma_at(address) {
                Ok(vma) => return Ok(Some((Arc::clone(program), vma))),
                // Another program is executed by now.
                Err(MemoryError::Gone { .. }) => {}
                Err(_) => return Ok(None),
            }
        }
        let program = Arc::new(Program {
            id: task.process()?,
            memory: Process::open(task.0)?,
        });
        self.programs.insert(task, Arc::clone(&program));
        let vma = program.memory.vma_at(address);
        Ok(vma.ok().map(|vma| (program, vma)))
    }
}

/// A register in words.
fn wanted(core: &Core, file: FileId, offset: u64) -> String {
    let host = &core.host;
    let device = host
        .device_access(file)
        .and_then(|index| host.device(index));
    let name = device.map_or("a device", |device| device.name.as_str());
    let (region, at) = uapi::region_of(offset);
    format!("register {at:#x} of BAR {region} of {name}")
}

/// The bytes at `rip`: as many as the instruction has, or as can be read.
fn code(task: Task, process: &Process, rip: u64) -> Vec<u8> {
    const PAGE: u64 = 4096;
    let mut code = Vec::with_capacity(16);
    for at in [rip, rip.wrapping_add(8)] {
        match task.word(at) {
            Ok(word) => code.extend_from_slice(&word),
            // Memory may end before the word does.
            Err(_) => {
                let left = PAGE.saturating_sub(rip % PAGE);
                code = vec![0; usize::try_from(left).unwrap_or(LONGEST).min(LONGEST)];
                if process.read(rip, &mut code).is_err() {
                    code.clear();
                }
                break;
            }
        }
        if is_whole(&code) {
            break;
        }
    }
    code
}

/// The file of ours that a mapping is of.
fn file_of(core: &Core, vma: &Vma) -> Option<FileId> {
    core.mapped(Inode::new(vma.device, vma.inode))
        .filter(|_| vma.is_file())
}

/// What the program's addresses lead to: registers, or its own memory.
struct Bus<'a> {
    core: &'a Arc<Core>,
    process: &'a Process,
    by: Actor,
    /// The mapping that faulted.
    device: (Vma, FileId),
    /// Another one that the instruction uses.
    other: Option<(Vma, Option<FileId>)>,
    /// Whether a device has refused the access.
    refused: bool,
}

impl Bus<'_> {
    /// The mapping that `address` lies in, and the file of ours if it is of
    /// one.
    fn find(&mut self, address: u64) -> Result<(Vma, Option<FileId>), Inaccessible> {
        let (vma, file) = self.device;
        if vma.file_offset(address).is_some() {
            return Ok((vma, Some(file)));
        }
        if let Some(other) = self
            .other
            .filter(|(vma, _)| vma.file_offset(address).is_some())
        {
            return Ok(other);
        }
        let vma = self.process.vma_at(address);
        let vma = vma.map_err(|_| Inaccessible(address))?;
        let found = (vma, file_of(self.core, &vma));
        self.other = Some(found);
        Ok(found)
    }

    /// Does an access piece by piece, each of which lies in one mapping: `one`
    /// gets the mapping, its file, and where the piece stands.
    fn pieces(
        &mut self,
        address: u64,
        length: usize,
        mut one: impl FnMut(&Self, Piece) -> Result<(), Errno>,
    ) -> Result<(), Inaccessible> {
        let mut done = 0_usize;
        while done < length {
            let offset = u64::try_from(done).map_err(|_| Inaccessible(address))?;
            let at = address.checked_add(offset).ok_or(Inaccessible(address))?;
            let (vma, file) = self.find(at)?;
            let left = usize::try_from(vma.end.saturating_sub(at)).unwrap_or(usize::MAX);
            let end = length.min(done.saturating_add(left));
            let piece = Piece {
                at,
                file: file.map(|file| (file, vma.file_offset(at).unwrap_or_default())),
                part: done..end,
            };
            let is_device = piece.file.is_some();
            if one(self, piece).is_err() {
                self.refused |= is_device;
                return Err(Inaccessible(at));
            }
            done = end.max(done.saturating_add(1));
        }
        Ok(())
    }

    fn finish(&self, answer: Answer) {
        self.core.settle(Rest::from(answer.after), || {});
    }
}

struct Piece {
    at: u64,
    /// The device's file and the offset in it; `None` for the program's own
    /// memory.
    file: Option<(FileId, u64)>,
    /// Of the bytes of the whole access.
    part: std::ops::Range<usize>,
}

impl Memory for Bus<'_> {
    fn read(&mut self, address: u64, into: &mut [u8]) -> Result<(), Inaccessible> {
        self.pieces(address, into.len(), |bus, piece| {
            let into = into.get_mut(piece.part).unwrap_or_default();
            match piece.file {
                Some((file, offset)) => {
                    let answer = uapi::load(&bus.core.host, file, offset, into, bus.by)?;
                    bus.finish(answer);
                    Ok(())
                }
                None => bus.process.read(piece.at, into).map_err(|_| Errno::EFAULT),
            }
        })
    }

    fn write(&mut self, address: u64, from: &[u8]) -> Result<(), Inaccessible> {
        self.pieces(address, from.len(), |bus, piece| {
            let from = from.get(piece.part).unwrap_or_default();
            match piece.file {
                Some((file, offset)) => {
                    let answer = uapi::store(&bus.core.host, file, offset, from, bus.by)?;
                    bus.finish(answer);
                    Ok(())
                }
                None => bus.process.write(piece.at, from).map_err(|_| Errno::EFAULT),
            }
        })
    }
}

/// Vector registers, fetched when an instruction uses one.
struct Fetched<'a> {
    task: Task,
    layout: Layout,
    area: &'a mut [u8; AREA],
    length: Option<usize>,
    changed: bool,
}

impl Fetched<'_> {
    fn xsave(&mut self) -> Option<Xsave<'_>> {
        let length = match self.length {
            Some(length) => length,
            None => *self.length.insert(self.task.area(self.area).ok()?),
        };
        Some(Xsave {
            layout: self.layout,
            area: self.area.get_mut(..length)?,
        })
    }

    fn put_back(self) -> io::Result<()> {
        let length = self.length.filter(|_| self.changed).unwrap_or_default();
        match self.area.get(..length) {
            Some(area) if length > 0 => self.task.set_area(area),
            _ => Ok(()),
        }
    }
}

impl Vectors for Fetched<'_> {
    fn get(&mut self, index: usize) -> Option<Vector> {
        self.xsave()?.get(index)
    }

    fn set(&mut self, index: usize, value: Vector) -> Option<()> {
        self.changed = true;
        self.xsave()?.set(index, value)
    }

    fn mask(&mut self, index: usize) -> Option<u64> {
        self.xsave()?.mask(index)
    }
}
