//! The qtest protocol of QEMU: memory, ports and registers of a stopped machine, read and written from outside.
//! QEMU: docs/devel/testing/qtest. Of the standard library alone, so that programs of other packages take the file by its path.

use std::collections::VecDeque;
use std::io::{self, BufRead as _, BufReader, BufWriter, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// How many answers may be outstanding: fewer than what fills the socket's buffer and stops QEMU.
const OUTSTANDING: usize = 256;
/// A machine that does not answer for so long never will.
const PATIENCE: Duration = Duration::from_secs(60);

/// An interrupt line of the intercepted device that QEMU told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Irq {
    pub(crate) line: u32,
    pub(crate) raised: bool,
}

/// A connection to a QEMU that was started with `-qtest unix:PATH,server=on,wait=off`, best with `-accel tcg -S`, which
/// needs no module.
///
/// Writes are sent without waiting for their answer; a later read, or [`settle`](Self::settle), finds their errors.
pub(crate) struct Qtest {
    input: BufReader<UnixStream>,
    output: BufWriter<UnixStream>,
    /// The commands whose answers are to come.
    sent: VecDeque<String>,
    /// Interrupts told and not yet taken.
    irqs: VecDeque<Irq>,
}

impl Qtest {
    /// Connects to the socket at `path`.
    pub(crate) fn connect(path: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self {
            input: BufReader::new(stream.try_clone()?),
            output: BufWriter::new(stream),
            sent: VecDeque::new(),
            irqs: VecDeque::new(),
        })
    }

    /// Sends a command whose answer carries nothing.
    pub(crate) fn post(&mut self, command: String) -> io::Result<()> {
        self.output.write_all(command.as_bytes())?;
        self.output.write_all(b"\n")?;
        self.sent.push_back(command);
        if self.sent.len() >= OUTSTANDING {
            self.settle()?;
        }
        Ok(())
    }

    /// Waits until everything sent is done.
    pub(crate) fn settle(&mut self) -> io::Result<()> {
        self.output.flush()?;
        while !self.sent.is_empty() {
            self.answer()?;
        }
        Ok(())
    }

    /// Sends a command and returns what stands after OK in its answer.
    pub(crate) fn ask(&mut self, command: String) -> io::Result<String> {
        let mut answers = self.ask_all(vec![command])?;
        Ok(answers.pop().unwrap_or_default())
    }

    /// Sends all of `commands`, no more than a few hundred, before it waits for the first answer.
    pub(crate) fn ask_all(&mut self, commands: Vec<String>) -> io::Result<Vec<String>> {
        while self.sent.len() + commands.len() >= OUTSTANDING && !self.sent.is_empty() {
            self.settle()?;
        }
        let before = self.sent.len();
        let wanted = commands.len();
        for command in commands {
            self.output.write_all(command.as_bytes())?;
            self.output.write_all(b"\n")?;
            self.sent.push_back(command);
        }
        self.output.flush()?;
        for _ in 0..before {
            self.answer()?;
        }
        (0..wanted).map(|_| self.answer()).collect()
    }

    /// The answer to the oldest command.
    fn answer(&mut self) -> io::Result<String> {
        loop {
            let mut line = String::new();
            if self.input.read_line(&mut line)? == 0 {
                let during = self.sent.front().cloned().unwrap_or_default();
                let what = format!("QEMU ended at or before: {during}");
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, what));
            }
            let line = line.trim_end();
            if let Some(told) = line.strip_prefix("IRQ ") {
                self.irqs.extend(irq(told));
                continue;
            }
            let command = self.sent.pop_front().unwrap_or_default();
            return match line.strip_prefix("OK") {
                Some(rest) => Ok(rest.trim_start().to_owned()),
                None => Err(io::Error::other(format!("{command}: {line}"))),
            };
        }
    }

    /// Reads `bytes` bytes, 1, 2, 4 or 8, at a guest-physical address, as one access.
    pub(crate) fn read(&mut self, address: u64, bytes: u32) -> io::Result<u64> {
        number(&self.ask(format!("read{} {address:#x}", letter(bytes)))?)
    }

    /// Reads many at once: address and bytes of each.
    pub(crate) fn read_all(&mut self, places: &[(u64, u32)]) -> io::Result<Vec<u64>> {
        let command = |&(address, bytes)| format!("read{} {address:#x}", letter(bytes));
        let answers = self.ask_all(places.iter().map(command).collect())?;
        answers.iter().map(|answer| number(answer)).collect()
    }

    /// Writes `bytes` bytes, 1, 2, 4 or 8, at a guest-physical address, as one access.
    pub(crate) fn write(&mut self, address: u64, bytes: u32, value: u64) -> io::Result<()> {
        self.post(format!("write{} {address:#x} {value:#x}", letter(bytes)))
    }

    /// Fills guest memory.
    pub(crate) fn fill(&mut self, address: u64, bytes: u64, value: u8) -> io::Result<()> {
        self.post(format!("memset {address:#x} {bytes:#x} {value:#x}"))
    }

    /// Writes to a port of the processor.
    pub(crate) fn write_port(&mut self, port: u16, bytes: u32, value: u32) -> io::Result<()> {
        self.post(format!("out{} {port:#x} {value:#x}", letter(bytes)))
    }

    /// Reads a port of the processor.
    pub(crate) fn read_port(&mut self, port: u16, bytes: u32) -> io::Result<u64> {
        number(&self.ask(format!("in{} {port:#x}", letter(bytes)))?)
    }

    /// Writes to the configuration space of a function on segment 0, by the ports of a PC.
    pub(crate) fn write_config(
        &mut self,
        requester: u16,
        offset: u8,
        bytes: u32,
        value: u32,
    ) -> io::Result<()> {
        let port = self.select(requester, offset)?;
        self.write_port(port, bytes, value)
    }

    /// Reads the configuration space of a function on segment 0.
    pub(crate) fn read_config(
        &mut self,
        requester: u16,
        offset: u8,
        bytes: u32,
    ) -> io::Result<u64> {
        let port = self.select(requester, offset)?;
        self.read_port(port, bytes)
    }

    fn select(&mut self, requester: u16, offset: u8) -> io::Result<u16> {
        let place = 0x8000_0000 | u32::from(requester) << 8 | u32::from(offset & !3);
        self.write_port(0xcf8, 4, place)?;
        Ok(0xcfc | u16::from(offset & 3))
    }

    /// Gives the function a memory BAR at `address` and lets it do DMA.
    pub(crate) fn enable(&mut self, requester: u16, bar: u8, address: u32) -> io::Result<()> {
        self.write_config(requester, 0x10 + 4 * bar, 4, address)?;
        self.write_config(requester, 0x04, 2, 0x6)
    }

    /// Has QEMU tell of the interrupt lines into (not out of) the device at this path of its object tree.
    pub(crate) fn intercept(&mut self, path: &str) -> io::Result<()> {
        self.ask(format!("irq_intercept_in {path}")).map(drop)
    }

    /// The oldest interrupt told and not yet taken. Everything posted is done first.
    pub(crate) fn take_irq(&mut self) -> io::Result<Option<Irq>> {
        self.settle()?;
        Ok(self.irqs.pop_front())
    }
}

fn letter(bytes: u32) -> char {
    match bytes {
        1 => 'b',
        2 => 'w',
        4 => 'l',
        _ => 'q',
    }
}

fn number(answer: &str) -> io::Result<u64> {
    let digits = answer.trim_start_matches("0x");
    u64::from_str_radix(digits, 16).map_err(|_| io::Error::other(format!("no number: {answer}")))
}

/// `raise 3` or `lower 3`.
fn irq(told: &str) -> Option<Irq> {
    let (word, line) = told.split_once(' ')?;
    Some(Irq {
        line: line.parse().ok()?,
        raised: word == "raise",
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;
    use std::os::unix::net::UnixListener;

    #[test]
    fn writes_do_not_wait_and_a_read_finds_their_errors() {
        let directory = std::env::temp_dir().join(format!("qtest-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let path = directory.join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let machine = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut bytes = [0; 27];
            stream.read_exact(&mut bytes).unwrap();
            assert_eq!(&bytes, b"writel 0x10 0x1\nreadq 0x20\n");
            stream.write_all(b"IRQ raise 3\nOK\nOK 0xab\n").unwrap();
            let mut bytes = [0; 24];
            stream.read_exact(&mut bytes).unwrap();
            stream.write_all(b"FAIL Unknown\nOK 0x0\n").unwrap();
        });
        let mut qtest = Qtest::connect(&path).unwrap();
        qtest.write(0x10, 4, 1).unwrap();
        assert_eq!(qtest.read(0x20, 8).unwrap(), 0xab);
        let raised = Irq {
            line: 3,
            raised: true,
        };
        assert_eq!(qtest.take_irq().unwrap(), Some(raised));
        qtest.write(0x10, 1, 1).unwrap();
        assert!(qtest.read(0, 1).is_err());
        machine.join().unwrap();
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
