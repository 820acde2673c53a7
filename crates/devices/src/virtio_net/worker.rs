//! One quantum of the device: packets from transmit queues to the back end,
//! packets of the back end to receive queues, commands.

use iogate_dma::Iova;
use iogate_pci::{After, Bus, BusError};

use super::VirtioNet;
use super::backend::{Backend, MAX_FRAME};
use super::ring::{BATCH, Position, Ring, Segment, Stop};
use super::spec::network::{HEADER, NUM_BUFFERS, control};
use super::state::{Cause, MAX_QUEUES, Plan, State};

/// Bytes of packets after which a quantum ends.
const DATA: usize = 1 << 20;
/// Bytes of a command at most.
const COMMAND: usize = 4096;
/// Commands of one quantum.
const COMMANDS: usize = 16;

/// What a worker keeps from one quantum to the next.
pub(super) struct Scratch {
    /// The initialization that the rings belong to.
    generation: u64,
    rings: Vec<Ring>,
    buffers: Buffers,
}

/// Buffers that every quantum uses again.
struct Buffers {
    /// A header and a frame.
    packet: Vec<u8>,
    indirect: Vec<u8>,
    segments: Vec<Segment>,
    /// The chains of one packet that is received, with their bytes.
    chains: Vec<(u16, u64)>,
}

impl Scratch {
    /// Where the rings of one initialization are; at the beginning if it is a
    /// new one.
    pub(super) fn positions(&self, generation: u64) -> [Position; MAX_QUEUES] {
        let mut positions = [Position::default(); MAX_QUEUES];
        if self.generation == generation {
            for (position, ring) in positions.iter_mut().zip(&self.rings) {
                *position = ring.position();
            }
        }
        positions
    }

    /// Has the rings of an initialization go on from there.
    pub(super) fn set_positions(&mut self, generation: u64, positions: &[Position; MAX_QUEUES]) {
        self.generation = generation;
        self.rings.resize_with(MAX_QUEUES, Ring::new);
        for (ring, position) in self.rings.iter_mut().zip(positions) {
            ring.set_position(*position);
        }
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self {
            generation: 0,
            rings: Vec::new(),
            buffers: Buffers {
                packet: vec![0; HEADER.saturating_add(MAX_FRAME)],
                indirect: Vec::new(),
                segments: Vec::new(),
                chains: Vec::new(),
            },
        }
    }
}

pub(super) struct Quantum<'w> {
    nic: &'w VirtioNet,
    bus: Bus<'w>,
    plan: Plan,
}

impl<'w> Quantum<'w> {
    pub(super) fn new(nic: &'w VirtioNet, bus: Bus<'w>, plan: Plan) -> Self {
        Self { nic, bus, plan }
    }

    /// Does the quantum.
    pub(super) fn run(&mut self, scratch: &mut Scratch) -> After {
        scratch.rings.resize_with(MAX_QUEUES, Ring::new);
        if scratch.generation != self.plan.generation {
            scratch.generation = self.plan.generation;
            scratch.rings.iter_mut().for_each(Ring::clear);
        }
        for (ring, place) in scratch.rings.iter_mut().zip(&self.plan.places) {
            ring.set(*place, self.plan.features.event_idx());
        }
        let more = match self.queues(scratch) {
            Ok(more) => more,
            Err(Stop::Reset) => 0,
            Err(Stop::Broken) => {
                self.bus.answered("set DEVICE_NEEDS_RESET");
                if let Some(Some(cause)) = self.with(State::needs_reset) {
                    self.interrupt(cause);
                }
                0
            }
        };
        self.with(|state| state.finish(more))
            .unwrap_or(After::Nothing)
    }

    /// Works on the state, unless the function was reset.
    fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> Option<T> {
        let mut state = self.nic.lock();
        (state.life == self.plan.life).then(|| work(&mut state))
    }

    fn interrupt(&self, cause: Cause) {
        let bus = &self.bus;
        let nic = self.nic;
        // A life that has ended interrupts nobody.
        let _ = self.with(|state| nic.interrupt(state, cause, |vector| bus.raise(vector)));
    }

    fn is_notified(&self, queue: usize) -> bool {
        let queue = u32::try_from(queue).unwrap_or(u32::MAX);
        self.plan.notified & bit(queue) != 0
    }

    /// Does what the queues that were notified ask for; those with more.
    fn queues(&mut self, scratch: &mut Scratch) -> Result<u32, Stop> {
        let mut more = 0;
        if self.plan.notified == 0 {
            return Ok(0);
        }
        if let Some(up) = self.nic.backend.link()
            && let Some(Some(cause)) = self.with(|state| state.set_link(up))
        {
            self.interrupt(cause);
        }
        let control = self.plan.control;
        let Scratch { rings, buffers, .. } = scratch;
        let (pairs, rest) = rings.split_at_mut_checked(control).unwrap_or_default();
        let mut index = 0_u32;
        for (pair, rings) in pairs.as_chunks_mut::<2>().0.iter_mut().enumerate() {
            let [receive, transmit] = rings;
            let (rx, tx) = (index, index.saturating_add(1));
            index = index.saturating_add(2);
            let mut pair = Pair {
                quantum: self,
                pair,
                receive,
                transmit,
                buffers,
                interrupt: false,
            };
            if pair.quantum.plan.notified & bit(tx) != 0 && pair.transmit()? {
                more |= bit(tx);
            }
            if pair.quantum.plan.notified & bit(rx) != 0 && pair.receive()? {
                more |= bit(rx);
            }
        }
        if let Some(ring) = rest.first_mut()
            && self.is_notified(control)
            && self.commands(ring, buffers)?
        {
            more |= bit(u32::try_from(control).unwrap_or(u32::MAX));
        }
        Ok(more)
    }

    /// Executes commands of the control queue; says whether there are more.
    fn commands(&mut self, ring: &mut Ring, buffers: &mut Buffers) -> Result<bool, Stop> {
        if !ring.is_enabled() || !self.plan.features.ctrl_vq() {
            return Ok(false);
        }
        ring.refresh(&mut self.bus)?;
        let mut done = 0_usize;
        while done < COMMANDS
            && let Some(head) = ring.take()
        {
            done = done.saturating_add(1);
            self.command(ring, head, buffers)?;
        }
        if ring.flush(&mut self.bus)? {
            self.interrupt(Cause::Queue(self.plan.control));
        }
        ring.listen(&mut self.bus)
    }

    fn command(&mut self, ring: &mut Ring, head: u16, buffers: &mut Buffers) -> Result<(), Stop> {
        let Buffers {
            packet,
            indirect,
            segments,
            ..
        } = buffers;
        segments.clear();
        let indirect = self.plan.features.indirect_desc().then_some(indirect);
        ring.chain(&mut self.bus, head, indirect, segments)?;
        let mut length = 0_usize;
        let mut answer = None;
        for segment in segments.iter() {
            if segment.writable {
                answer = answer.or(Some(segment.address));
                continue;
            }
            let bytes = usize::try_from(segment.length).unwrap_or(usize::MAX);
            let end = length.saturating_add(bytes);
            // Readable after writable is no chain. Virtio 1.2 section 2.7.4.2.
            let place = packet.get_mut(length..end);
            let (Some(into), true) = (place, answer.is_none() && end <= COMMAND) else {
                return Err(Stop::Broken);
            };
            self.bus.read(Iova(segment.address), into)?;
            length = end;
        }
        let Some(answer) = answer else {
            return Err(Stop::Broken);
        };
        let ack = self.answer(packet.get(..length).unwrap_or_default());
        self.bus.write(Iova(answer), &[ack])?;
        ring.give(head, 1);
        Ok(())
    }

    fn answer(&self, command: &[u8]) -> u8 {
        let done = match *command {
            // Everything is received: no filter is ever on.
            [control::RX, 0 | 1, _] => self.plan.features.ctrl_rx(),
            [control::MAC, control::MAC_TABLE_SET, ..] => self.plan.features.ctrl_rx(),
            [control::MQ, control::VQ_PAIRS_SET, low, high] => {
                let pairs = u16::from_le_bytes([low, high]);
                self.with(|state| state.use_pairs(pairs)).unwrap_or(false)
            }
            _ => false,
        };
        match done {
            true => control::OK,
            false => control::ERROR,
        }
    }
}

/// The two queues of a pair, in one quantum.
struct Pair<'q, 'w> {
    quantum: &'q mut Quantum<'w>,
    /// Its number.
    pair: usize,
    receive: &'q mut Ring,
    transmit: &'q mut Ring,
    buffers: &'q mut Buffers,
    /// The driver wants to be told of what was received.
    interrupt: bool,
}

impl Pair<'_, '_> {
    /// Sends what the driver has made available; says whether there is more.
    fn transmit(&mut self) -> Result<bool, Stop> {
        if !self.transmit.is_enabled() {
            return Ok(false);
        }
        self.transmit.silence(&mut self.quantum.bus)?;
        if self.is_loop() {
            // Buffers are looked for when there is a packet for them.
            self.receive.silence(&mut self.quantum.bus)?;
        }
        self.transmit.refresh(&mut self.quantum.bus)?;
        let mut moved = 0_usize;
        while moved < DATA
            && !self.quantum.nic.rest.is_asked()
            && let Some(head) = self.transmit.take()
        {
            if let Some(length) = self.gather(head)? {
                moved = moved.saturating_add(length);
                match &self.quantum.nic.backend {
                    Backend::Loopback if self.is_loop() => self.deliver(length).map(|_| ())?,
                    Backend::Loopback => {}
                    Backend::Stream(stream) => {
                        let frame = self.buffers.packet.get(HEADER..length);
                        stream.send(frame.unwrap_or_default());
                    }
                }
            }
            self.transmit.give(head, 0);
        }
        self.flush_received()?;
        if self.transmit.flush(&mut self.quantum.bus)? {
            let queue = self.pair.saturating_mul(2).saturating_add(1);
            self.quantum.interrupt(Cause::Queue(queue));
        }
        self.transmit.watch(&mut self.quantum.bus)
    }

    /// Whether packets of this pair come back to it: the driver uses it.
    fn is_loop(&self) -> bool {
        matches!(self.quantum.nic.backend, Backend::Loopback)
            && self.pair < usize::from(self.quantum.plan.pairs)
            && self.receive.is_enabled()
    }

    /// Receives what the back end has for this pair; says whether there is
    /// more that has room.
    fn receive(&mut self) -> Result<bool, Stop> {
        let Backend::Stream(stream) = &self.quantum.nic.backend else {
            return Ok(false);
        };
        // One stream feeds one queue.
        if self.pair != 0 || !self.receive.is_enabled() {
            return Ok(false);
        }
        self.receive.silence(&mut self.quantum.bus)?;
        let mut moved = 0_usize;
        let mut room = true;
        for _ in 0..BATCH {
            let Some(frame) = stream.next() else {
                break;
            };
            let length = HEADER.saturating_add(frame.len());
            let place = self.buffers.packet.get_mut(HEADER..length);
            for (to, from) in place.unwrap_or_default().iter_mut().zip(frame.iter()) {
                *to = *from;
            }
            let taken = self.deliver(length)?;
            match taken {
                Delivery::NoBuffers => {
                    stream.put_back(frame);
                    room = false;
                    break;
                }
                Delivery::Received | Delivery::Dropped => stream.recycle(frame),
            }
            moved = moved.saturating_add(length);
            if moved >= DATA || self.quantum.nic.rest.is_asked() {
                break;
            }
        }
        self.flush_received()?;
        if !room {
            return self.receive.listen(&mut self.quantum.bus);
        }
        Ok(stream.has_frames())
    }

    fn flush_received(&mut self) -> Result<(), Stop> {
        self.interrupt |= self.receive.flush(&mut self.quantum.bus)?;
        if std::mem::take(&mut self.interrupt) {
            let queue = self.pair.saturating_mul(2);
            self.quantum.interrupt(Cause::Queue(queue));
        }
        Ok(())
    }

    /// Reads the packet of a chain; its bytes with the header, or `None` if
    /// its memory was refused.
    fn gather(&mut self, head: u16) -> Result<Option<usize>, Stop> {
        let Buffers {
            packet,
            indirect,
            segments,
            ..
        } = &mut *self.buffers;
        let bus = &mut self.quantum.bus;
        segments.clear();
        let indirect = self
            .quantum
            .plan
            .features
            .indirect_desc()
            .then_some(indirect);
        let total = self.transmit.chain(bus, head, indirect, segments)?;
        let total = usize::try_from(total).unwrap_or(usize::MAX);
        if total < HEADER || total > packet.len() {
            return Err(Stop::Broken);
        }
        let mut rest = packet.as_mut_slice();
        for segment in segments.iter() {
            if segment.writable {
                return Err(Stop::Broken);
            }
            let length = usize::try_from(segment.length).unwrap_or(usize::MAX);
            let (now, later) = rest.split_at_mut_checked(length).ok_or(Stop::Broken)?;
            rest = later;
            match bus.read(Iova(segment.address), now) {
                Ok(()) => {}
                Err(BusError::Reset) => return Err(Stop::Reset),
                Err(BusError::Refused(_)) => {
                    bus.answered("dropped the packet to transmit");
                    return Ok(None);
                }
            }
        }
        Ok(Some(total))
    }

    /// Puts the packet of `length` bytes, header included, where the driver
    /// wants it.
    fn deliver(&mut self, length: usize) -> Result<Delivery, Stop> {
        let wanted = u64::try_from(length).unwrap_or(u64::MAX);
        if !self.take_buffers(wanted)? {
            // Those held may have ended in the middle of the packet.
            self.interrupt |= self.receive.flush(&mut self.quantum.bus)?;
            if !self.receive.refresh(&mut self.quantum.bus)? {
                return Ok(Delivery::NoBuffers);
            }
            if !self.take_buffers(wanted)? {
                return Ok(Delivery::Dropped);
            }
        }
        let count = u16::try_from(self.buffers.chains.len()).unwrap_or(u16::MAX);
        let packet = self.buffers.packet.get_mut(..length).unwrap_or_default();
        for (index, byte) in packet.iter_mut().take(HEADER).enumerate() {
            let [low, high] = count.to_le_bytes();
            *byte = match index {
                NUM_BUFFERS => low,
                0..NUM_BUFFERS => 0,
                _ => high,
            };
        }
        let mut rest: &[u8] = packet;
        let mut refused = false;
        for segment in &self.buffers.segments {
            let now = usize::try_from(segment.length).map_or(rest.len(), |now| now.min(rest.len()));
            let (now, later) = rest.split_at_checked(now).unwrap_or_default();
            rest = later;
            if now.is_empty() {
                break;
            }
            match self.quantum.bus.write(Iova(segment.address), now) {
                Ok(()) => {}
                Err(BusError::Reset) => return Err(Stop::Reset),
                Err(BusError::Refused(_)) => refused = true,
            }
        }
        if refused {
            let answer = "dropped the received packet: gave its buffers back empty";
            self.quantum.bus.answered(answer);
        }
        let mut rest = wanted;
        for (head, bytes) in &self.buffers.chains {
            let now = match refused {
                true => 0,
                false => rest.min(*bytes),
            };
            rest = rest.saturating_sub(now);
            self.receive.give(*head, u32::try_from(now).unwrap_or(0));
        }
        Ok(Delivery::Received)
    }

    /// Takes receive buffers for `wanted` bytes; `false` if those held do not
    /// do, which are then still available.
    fn take_buffers(&mut self, wanted: u64) -> Result<bool, Stop> {
        let mergeable = self.quantum.plan.features.mrg_rxbuf();
        self.buffers.segments.clear();
        self.buffers.chains.clear();
        let mut room = 0_u64;
        while room < wanted {
            let another = mergeable || self.buffers.chains.is_empty();
            let head = match another {
                true => self.receive.take(),
                false => None,
            };
            let Some(head) = head else {
                for _ in &self.buffers.chains {
                    self.receive.put_back();
                }
                return Ok(false);
            };
            let bytes = self.buffer(head)?;
            room = room.saturating_add(bytes);
            self.buffers.chains.push((head, bytes));
        }
        Ok(true)
    }

    /// Adds the segments of the receive buffer at `head`; its bytes.
    fn buffer(&mut self, head: u16) -> Result<u64, Stop> {
        let Buffers {
            indirect, segments, ..
        } = &mut *self.buffers;
        let first = segments.len();
        let indirect = self
            .quantum
            .plan
            .features
            .indirect_desc()
            .then_some(indirect);
        let bus = &mut self.quantum.bus;
        let bytes = self.receive.chain(bus, head, indirect, segments)?;
        let mut added = segments.iter().skip(first);
        if added.any(|segment| !segment.writable) || bytes == 0 {
            return Err(Stop::Broken);
        }
        Ok(bytes)
    }
}

/// What became of a packet to receive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Delivery {
    Received,
    /// It does not fit into the buffers that there are.
    Dropped,
    NoBuffers,
}

fn bit(queue: u32) -> u32 {
    1_u32.checked_shl(queue).unwrap_or(0)
}
