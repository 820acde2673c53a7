//! Putting back what a fault has changed of a program's SIGBUS: the mask by
//! ptrace, the action by a call that the thread itself makes.

use std::io;

use iogate_memory::Process;

use super::bus_errors::{Action, BIT, BusErrors, Shown, Wanted};
use super::trace::{Task, User};

/// Bytes below the stack pointer that a function may use. System V ABI for
/// AMD64, section 3.2.2.
const RED_ZONE: u64 = 128;
/// Bytes of an action.
const SIZE: u64 = 32;
/// AT_SYSINFO_EHDR: where the vDSO is. include/uapi/linux/auxvec.h.
const VDSO: u64 = 33;
/// Every signal but the one by which debuggers hear of steps.
const QUIET: u64 = !(1 << (libc::SIGTRAP - 1));

/// Puts back what the fault that `task` of `process` is stopped at has changed.
/// Its registers are those that it goes on with.
pub(super) fn restore(
    task: Task,
    process: u32,
    memory: &Process,
    bus_errors: &BusErrors,
) -> io::Result<()> {
    match bus_errors.wanted(process, task.number()) {
        Wanted::Nothing => Ok(()),
        Wanted::Blocked => block(task),
        Wanted::Action(action, blocked) => {
            act(task, memory, action)?;
            if blocked { block(task) } else { Ok(()) }
        }
        Wanted::Handler(action) => {
            if task.shown()?.caught {
                return Ok(());
            }
            // A handler that runs had it blocked.
            act(task, memory, action)?;
            block(task)
        }
    }
}

fn block(task: Task) -> io::Result<()> {
    task.set_mask(task.mask()? | BIT)
}

/// Has the task set the action.
fn act(task: Task, memory: &Process, action: Action) -> io::Result<()> {
    let before = task.registers()?;
    let registers = before.to_registers();
    let [_, _, _, _, stack, ..] = registers.general;
    let at = stack.wrapping_sub(RED_ZONE).wrapping_sub(SIZE) & !15;
    let Some(call) = call_instruction(task, memory) else {
        return Ok(());
    };
    let mut old = [0; 32];
    let Action(words) = action;
    let mut new = [0; 32];
    for (bytes, word) in new.as_chunks_mut::<8>().0.iter_mut().zip(words) {
        *bytes = word.to_le_bytes();
    }
    if memory.read(at, &mut old).is_err() || memory.write(at, &new).is_err() {
        return Ok(());
    }
    let mask = task.mask()?;
    task.set_mask(QUIET)?;
    let mut user = before;
    user.set_call(
        libc::SYS_rt_sigaction,
        [libc::SIGBUS.unsigned_abs().into(), at, 0, 8],
        call,
    );
    task.set_registers(&user)?;
    let made = task.make_call();
    task.set_registers(&User(before.0))?;
    task.set_mask(mask)?;
    let _ = memory.write(at, &old);
    made
}

/// Where a `syscall` stands in the vDSO.
fn call_instruction(task: Task, memory: &Process) -> Option<u64> {
    let vector = std::fs::read(format!("/proc/{}/auxv", task.number())).ok()?;
    let (words, _) = vector.as_chunks::<8>();
    let (pairs, _) = words.as_chunks::<2>();
    let mut pairs = pairs.iter().map(|pair| pair.map(u64::from_le_bytes));
    let base = pairs.find_map(|[key, value]| (key == VDSO).then_some(value))?;
    let end = memory.vma_at(base).ok()?.end;
    let mut code = vec![0; usize::try_from(end.checked_sub(base)?.min(64 << 10)).ok()?];
    memory.read(base, &mut code).ok()?;
    let found = code.windows(2).position(|bytes| bytes == [0x0f, 0x05])?;
    base.checked_add(u64::try_from(found).ok()?)
}

/// What `/proc` shows of a task, its process, and that one's parent.
pub(super) fn look(task: Task) -> io::Result<(Shown, u32, u32)> {
    let status = task.status()?;
    let number = |name: &str| {
        let value = status.lines().find_map(|line| line.strip_prefix(name));
        value
            .and_then(|value| value.trim().parse().ok())
            .unwrap_or_default()
    };
    Ok((Shown::parse(&status), number("Tgid:"), number("PPid:")))
}
