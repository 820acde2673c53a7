//! A server written straight from the specification: a list of mappings, a
//! match over commands, no thought of speed.

use iogate_vfio_user::Errno;

/// Sizes of the device's regions; the second cannot be written.
pub const REGIONS: [usize; 3] = [0x9000, 64, 0];
/// How many interrupts each type has.
pub const IRQS: [u32; 2] = [4, 0];
pub const MAX_MAPS: usize = 5;
pub const TRANSFER: u64 = 0x8000;
/// Longer messages end the connection.
const LONGEST: usize = 16 + (64 << 10) + TRANSFER as usize;

/// What the device was told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Told {
    Write(u32, u64, Vec<u8>),
    Map(u64, u64, u8),
    Unmap(u64, u64),
    Irqs(u32, u32, u32, u32, Option<Vec<u8>>),
    Reset,
    Feature(u32, Vec<u8>),
    State(Vec<u8>),
    Gone,
}

/// What became of the stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    Disconnected,
    Short,
    Long,
    Type,
    Torn,
    Version,
}

#[derive(Default)]
pub struct Model {
    pub memory: Vec<u8>,
    maps: Vec<(u64, u64)>,
    pub told: Vec<Told>,
    pub replies: Vec<u8>,
}

type Answer = Result<Vec<u8>, Errno>;

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes(bytes[at..at + 2].try_into().unwrap())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn words(numbers: &[u32]) -> Vec<u8> {
    numbers
        .iter()
        .flat_map(|number| number.to_ne_bytes())
        .collect()
}

fn need(condition: bool) -> Result<(), Errno> {
    if condition { Ok(()) } else { Err(Errno::INVAL) }
}

impl Model {
    /// Takes the whole stream and says how it ended.
    pub fn run(&mut self, mut stream: &[u8]) -> Ended {
        self.memory = vec![0; REGIONS[0]];
        let mut negotiated = false;
        let ended = loop {
            if stream.is_empty() {
                break Ended::Disconnected;
            }
            if stream.len() < 16 {
                break Ended::Torn;
            }
            let (command, size) = (u16_at(stream, 2), u32_at(stream, 4) as usize);
            let flags = u32_at(stream, 8);
            if flags & 0xf > 1 {
                break Ended::Type;
            }
            if size < 16 {
                break Ended::Short;
            }
            if size > if negotiated { LONGEST } else { 16 << 10 } {
                break Ended::Long;
            }
            if size > stream.len() {
                break Ended::Torn;
            }
            let (message, rest) = stream.split_at(size);
            stream = rest;
            if flags & 0xf == 1 {
                continue;
            }
            let body = &message[16..];
            if !negotiated {
                let version = self.version(command, body);
                let fine = version.is_ok();
                // The first reply is always given.
                self.reply(message, 0, version);
                if !fine {
                    return Ended::Version;
                }
                negotiated = true;
                continue;
            }
            let answer = self.answer(command, body);
            self.reply(message, flags, answer);
        };
        if negotiated {
            for (first, last) in std::mem::take(&mut self.maps) {
                self.told.push(Told::Unmap(first, last));
            }
            self.told.push(Told::Gone);
        }
        ended
    }

    fn reply(&mut self, to: &[u8], flags: u32, answer: Answer) {
        if flags & 0x10 != 0 {
            return;
        }
        let (error, body) = match answer {
            Ok(body) => (None, body),
            Err(errno) => (Some(errno.raw_os_error() as u32), Vec::new()),
        };
        self.replies.extend_from_slice(&to[..4]);
        let size = 16 + body.len() as u32;
        let flags = if error.is_some() { 0x21 } else { 1 };
        self.replies
            .extend(words(&[size, flags, error.unwrap_or(0)]));
        self.replies.extend(body);
    }

    /// The sessions here name no capability, or all of them.
    fn version(&mut self, command: u16, body: &[u8]) -> Answer {
        need(command == 1 && body.len() >= 4 && u16_at(body, 0) == 0)?;
        let json = match &body[4..] {
            [] => "",
            [json @ .., 0] => std::str::from_utf8(json).map_err(|_| Errno::INVAL)?,
            _ => return Err(Errno::INVAL),
        };
        let known = r#""max_data_xfer_size":32768,"max_dma_maps":5"#;
        let capabilities = match json {
            "" | "{}" => format!("{{{known}}}"),
            super::ALL => {
                format!(r#"{{{known},"max_msg_fds":16,"pgsizes":4096,"write_multiple":true}}"#)
            }
            _ => return Err(Errno::INVAL),
        };
        let mut reply = vec![0; 4];
        reply.extend(format!("{{\"capabilities\":{capabilities}}}\0").into_bytes());
        Ok(reply)
    }

    fn answer(&mut self, command: u16, body: &[u8]) -> Answer {
        match command {
            2 => self.map(body),
            3 => self.unmap(body),
            4 => {
                need(body.len() >= 16 && u32_at(body, 0) >= 16)?;
                Ok(words(&[16, 3, 3, 2]))
            }
            5 => region_info(body),
            6 => {
                need(body.len() >= 16 && u32_at(body, 0) >= 16)?;
                let index = u32_at(body, 8);
                need(u32_at(body, 4) == 0 && index < 3 && u32_at(body, 12) == 0)?;
                Ok(words(&[16, 0, index, 0]))
            }
            7 => {
                need(body.len() >= 16 && u32_at(body, 0) >= 16 && u32_at(body, 8) < 2)?;
                let index = u32_at(body, 8);
                Ok(words(&[16, 1, index, IRQS[index as usize]]))
            }
            8 => self.set_irqs(body),
            9 => {
                need(body.len() == 16)?;
                let count = u32_at(body, 12).into();
                let data = self.region(body, count)?;
                let mut reply = body.to_vec();
                reply.extend(data);
                Ok(reply)
            }
            10 => {
                need(body.len() >= 16 && u32_at(body, 12) as usize == body.len() - 16)?;
                self.write(body[..16].try_into().unwrap(), &body[16..])?;
                Ok(body[..16].to_vec())
            }
            13 => {
                need(body.is_empty())?;
                self.told.push(Told::Reset);
                Ok(Vec::new())
            }
            // Nothing logs dirty pages here.
            14 => {
                need(body.len() >= 8)?;
                match u32_at(body, 4) {
                    1 | 2 => Err(Errno::NOTSUP),
                    4 => {
                        need(body.len() >= 24)?;
                        bitmap(
                            u64_at(body, 8),
                            u64_at(body, 16),
                            &body[24..],
                            u32_at(body, 0),
                            24,
                        )
                    }
                    _ => Err(Errno::INVAL),
                }
            }
            15 => self.write_multi(body),
            16 => self.feature(body),
            17 => {
                need(body.len() == 8)?;
                let size = u64::from(u32_at(body, 4));
                need(size <= TRANSFER && u64::from(u32_at(body, 0)) >= size + 8)?;
                let given = size.min(5) as u32;
                let mut reply = words(&[8 + given, given]);
                reply.extend(vec![7; given as usize]);
                Ok(reply)
            }
            18 => {
                need(body.len() >= 8 && body.len() - 8 == u32_at(body, 4) as usize)?;
                need(body.len() - 8 <= TRANSFER as usize)?;
                self.told.push(Told::State(body[8..].to_vec()));
                Ok(Vec::new())
            }
            1 => Err(Errno::INVAL),
            _ => Err(Errno::NOSYS),
        }
    }

    /// The bytes of an access, offset and region of which lie in `access`.
    fn region(&self, access: &[u8], count: u64) -> Result<Vec<u8>, Errno> {
        let (offset, region) = (u64_at(access, 0), u32_at(access, 8) as usize);
        need(count <= TRANSFER && region < 3)?;
        let end = u128::from(offset) + u128::from(count);
        need(end <= REGIONS[region] as u128)?;
        if region == 2 {
            return Err(Errno::INVAL);
        }
        let range = offset as usize..end as usize;
        Ok(match region {
            0 => self.memory[range].to_vec(),
            _ => range.map(|at| at as u8).collect(),
        })
    }

    fn write(&mut self, access: [u8; 16], data: &[u8]) -> Result<(), Errno> {
        self.region(&access, data.len() as u64)?;
        let (offset, region) = (u64_at(&access, 0), u32_at(&access, 8));
        need(region == 0)?;
        if !data.is_empty() {
            self.memory[offset as usize..][..data.len()].copy_from_slice(data);
            self.told.push(Told::Write(region, offset, data.to_vec()));
        }
        Ok(())
    }

    fn write_multi(&mut self, body: &[u8]) -> Answer {
        need(body.len() >= 8)?;
        let (count, writes) = (u64_at(body, 0), &body[8..]);
        need(u128::from(count) * 24 == writes.len() as u128)?;
        let mut done = 0_u64;
        for write in writes.chunks(24) {
            let count = u32_at(write, 12) as usize;
            let result = if count > 8 {
                Err(Errno::INVAL)
            } else {
                self.write(write[..16].try_into().unwrap(), &write[16..16 + count])
            };
            match result {
                Ok(()) => done += 1,
                Err(errno) if done == 0 => return Err(errno),
                Err(_) => break,
            }
        }
        Ok(done.to_ne_bytes().to_vec())
    }

    fn map(&mut self, body: &[u8]) -> Answer {
        need(body.len() == 32 && u32_at(body, 0) >= 32)?;
        let (flags, offset) = (u32_at(body, 4), u64_at(body, 8));
        let (address, size) = (u64_at(body, 16), u64_at(body, 24));
        need(flags & !0xf == 0 && size > 0)?;
        let last = u128::from(address) + u128::from(size) - 1;
        // No descriptor comes here, so there is nothing to have an offset in.
        need(last <= u128::from(u64::MAX) && offset == 0)?;
        let last = last as u64;
        if self
            .maps
            .iter()
            .any(|map| map.0 <= last && address <= map.1)
        {
            return Err(Errno::EXIST);
        }
        if self.maps.len() == MAX_MAPS {
            return Err(Errno::NOSPC);
        }
        self.maps.push((address, last));
        self.maps.sort_unstable();
        self.told.push(Told::Map(address, last, flags as u8 & 3));
        Ok(Vec::new())
    }

    fn unmap(&mut self, body: &[u8]) -> Answer {
        need(body.len() >= 24)?;
        let (flags, address, size) = (u32_at(body, 4), u64_at(body, 8), u64_at(body, 16));
        let (first, last) = match flags {
            2 => {
                need(address == 0 && size == 0)?;
                (0, u64::MAX)
            }
            0 | 1 => {
                let last = u128::from(address) + u128::from(size);
                need(size > 0 && last <= 1 << 64)?;
                (address, (last - 1) as u64)
            }
            _ => return Err(Errno::INVAL),
        };
        if flags == 1 {
            return bitmap(address, size, &body[24..], u32_at(body, 0), 24);
        }
        let cuts = |map: &(u64, u64)| {
            let shares = map.0 <= last && first <= map.1;
            shares && (map.0 < first || map.1 > last)
        };
        need(!self.maps.iter().any(cuts))?;
        let (gone, stay): (Vec<_>, _) = self
            .maps
            .iter()
            .partition(|map| first <= map.0 && map.1 <= last);
        if gone.is_empty() && flags == 0 {
            return Err(Errno::NOENT);
        }
        self.maps = stay;
        let gone = gone
            .into_iter()
            .map(|(first, last)| Told::Unmap(first, last));
        self.told.extend(gone);
        Ok(body[..24].to_vec())
    }

    fn set_irqs(&mut self, body: &[u8]) -> Answer {
        need(body.len() >= 20 && u32_at(body, 0) >= 20)?;
        let (flags, index) = (u32_at(body, 4), u32_at(body, 8));
        let (start, count) = (u32_at(body, 12), u32_at(body, 16));
        need(index < 2 && matches!(flags >> 3, 1 | 2 | 4))?;
        let known = IRQS[index as usize];
        need(start < known && u64::from(start) + u64::from(count) <= known.into())?;
        let data = match flags & 7 {
            1 => None,
            2 => {
                need(count > 0 && body.len() - 20 >= count as usize)?;
                Some(body[20..][..count as usize].to_vec())
            }
            4 => {
                need(count > 0)?;
                Some(Vec::new())
            }
            _ => return Err(Errno::INVAL),
        };
        self.told
            .push(Told::Irqs(index, start, count, flags >> 3, data));
        Ok(Vec::new())
    }

    /// Feature 1 is got as two bytes and set as anything.
    fn feature(&mut self, body: &[u8]) -> Answer {
        need(body.len() >= 8 && u32_at(body, 0) >= 8)?;
        let (flags, data) = (u32_at(body, 4), &body[8..]);
        let operation = flags >> 16;
        need(operation <= 7 && matches!(operation, 1 | 2 | 4..=7))?;
        if flags & 0xffff != 1 {
            return Err(Errno::NOTTY);
        }
        self.told.push(Told::Feature(operation, data.to_vec()));
        let mut reply = body.to_vec();
        if operation == 1 {
            need(u32_at(body, 0) >= 10)?;
            reply.truncate(8);
            reply.extend([3, 4]);
        }
        let length = reply.len() as u32;
        reply[..4].copy_from_slice(&length.to_ne_bytes());
        Ok(reply)
    }
}

fn region_info(body: &[u8]) -> Answer {
    need(body.len() >= 32 && u32_at(body, 0) >= 32 && u32_at(body, 8) < 3)?;
    let index = u32_at(body, 8);
    let flags = [3, 1, 0][index as usize];
    let mut reply = words(&[32, flags, index, 0]);
    reply.extend((REGIONS[index as usize] as u64).to_ne_bytes());
    reply.extend(0_u64.to_ne_bytes());
    Ok(reply)
}

/// The checks of a bitmap that no device here has.
fn bitmap(address: u64, size: u64, request: &[u8], argsz: u32, fixed: u64) -> Answer {
    need(size > 0 && u128::from(address) + u128::from(size) <= 1 << 64)?;
    need(request.len() >= 16)?;
    let (page, room) = (u64_at(request, 0), u64_at(request, 8));
    need(page.is_power_of_two())?;
    let pages = u128::from(size).div_ceil(page.into());
    let least = pages.div_ceil(64) * 8;
    need(room <= TRANSFER && u128::from(room) >= least)?;
    need(u64::from(argsz) >= fixed + 16 + room)?;
    Err(Errno::NOTSUP)
}
