//! A device behind a connection as the listener of an address space: what is
//! mapped there becomes DMA_MAP, what is unmapped DMA_UNMAP.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, PoisonError};

use iogate_dma::{Change, Gpa, Iova, Listener, Mapping, Partial, Rights, Span};
use rustix::io::Errno;
use zerocopy::IntoBytes;

use crate::client::Client;
use crate::error::Error;
use crate::requests::{map_request, unmap_request};
use crate::wire::Command;

/// Requests that are sent before the first of them is answered.
const WINDOW: usize = 64;

/// How a remote device reaches a piece of guest memory.
#[derive(Clone, Copy, Debug)]
pub enum Held<'file> {
    /// Through this file, from this offset on.
    File(BorrowedFd<'file>, u64),
    /// By asking the client, whose
    /// [`memory`](crate::ClientOptions::memory) has it.
    Requests,
}

/// Guest memory, for those who have to hand it on.
pub trait Backing: Send + Sync {
    /// Tells what holds `run`: parts of it in the order of addresses. What is
    /// not told of is not there, and no device will reach it.
    fn pieces(&self, run: Span<Gpa>, tell: &mut dyn FnMut(Span<Gpa>, Held<'_>));
}

impl<F: Fn(Span<Gpa>, &mut dyn FnMut(Span<Gpa>, Held<'_>)) + Send + Sync> Backing for F {
    fn pieces(&self, run: Span<Gpa>, tell: &mut dyn FnMut(Span<Gpa>, Held<'_>)) {
        self(run, tell);
    }
}

/// What one message mapped.
#[derive(Clone, Copy)]
struct Sent {
    span: Span<Iova>,
    output: Gpa,
    rights: Rights,
}

/// What one message is to do.
enum Step {
    Map(Sent),
    Unmap(Span<Iova>),
}

/// Why not all steps were done.
struct Failed {
    /// The first that was not.
    first: usize,
    /// Those behind it that were.
    behind: Vec<usize>,
    /// Those that found nothing to map.
    nothing: Vec<usize>,
    errno: Errno,
    /// Whether it is not known what the device did.
    lost: bool,
}

/// A remote device that follows an address space.
///
/// Changes that continue each other become one message, and messages are sent
/// without waiting for the reply to each. Servers take an unmap only if it is
/// exactly what one message mapped. So an unmap that cuts such a piece takes
/// the whole piece back and maps at once again what stays of it: for that
/// short time the device is refused what stays too. Nothing else is touched.
///
/// Memory that is not there any more is not mapped again either: whoever
/// changes what a [`Backing`] finds has the address space told anew.
///
/// A failed map leaves what it says: the changes before it. A server that does
/// not take back what it has cannot be made to; then the connection is closed,
/// after which it has nothing, and every change fails with ENOTCONN. A new
/// connection needs a new listener, and the address space told anew.
pub struct RemoteListener<B> {
    client: Arc<Client>,
    backing: B,
    sent: Mutex<BTreeMap<u64, Sent>>,
}

fn part(sent: &Sent, span: Span<Iova>) -> Sent {
    let skip = span.first().0.wrapping_sub(sent.span.first().0);
    Sent {
        span,
        output: Gpa(sent.output.0.wrapping_add(skip)),
        rights: sent.rights,
    }
}

/// The mapping of the first of `changes`, with those behind it that go on where
/// it ends; and how many that are.
fn run(changes: &[Change]) -> Option<(Mapping, usize)> {
    let Some(Change::Map(first)) = changes.first() else {
        return None;
    };
    let mut run = *first;
    let mut count: usize = 1;
    while let Some(Change::Map(next)) = changes.get(count) {
        let length = run.span.length();
        let follows = |length: u64| {
            next.rights == run.rights
                && run.span.first().checked_add(length) == Some(next.span.first())
                && run.output.checked_add(length) == Some(next.output)
        };
        match Span::new(run.span.first(), next.span.last()) {
            Some(span) if length.is_some_and(follows) => run.span = span,
            _ => break,
        }
        count = count.saturating_add(1);
    }
    Some((run, count))
}

impl<B: Backing> RemoteListener<B> {
    /// Tells the device behind `client` of memory that `backing` finds.
    /// Nothing may be mapped there yet, and nobody else may map there.
    pub fn new(client: Arc<Client>, backing: B) -> Self {
        Self {
            client,
            backing,
            sent: Mutex::default(),
        }
    }

    /// The connection.
    pub fn client(&self) -> &Arc<Client> {
        &self.client
    }

    /// How many mappings the device has: one a message.
    pub fn mappings(&self) -> usize {
        self.sent
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }

    fn most(&self) -> usize {
        usize::try_from(self.client.limits().max_dma_maps).unwrap_or(usize::MAX)
    }

    /// The messages that map `run`.
    fn steps(&self, run: &Mapping) -> Vec<Sent> {
        let mut steps = Vec::new();
        let whole = Sent {
            span: run.span,
            output: Gpa(run.output),
            rights: run.rights,
        };
        let last = run.output.saturating_add(run.span.last_offset());
        let Some(output) = Span::new(whole.output, Gpa(last)) else {
            return steps;
        };
        self.backing.pieces(output, &mut |piece, _| {
            let Some(piece) = piece.intersection(&output) else {
                return;
            };
            let skip = piece.first().0.wrapping_sub(output.first().0);
            let first = run.span.first().checked_add(skip);
            let last = first.and_then(|first| first.checked_add(piece.last_offset()));
            if let Some(span) = first
                .zip(last)
                .and_then(|(first, last)| Span::new(first, last))
            {
                steps.push(part(&whole, span));
            }
        });
        steps
    }

    /// Sends what `step` says; `None` if the memory that it is to map is not
    /// there any more, as one piece.
    fn submit(&self, step: &Step) -> Result<Option<u16>, Error> {
        let channel = &self.client.channel;
        let sent = match step {
            Step::Unmap(span) => {
                let request = unmap_request(*span)?;
                let id = channel.submit(Command::DmaUnmap, &[request.as_bytes()], &[])?;
                return Ok(Some(id));
            }
            Step::Map(sent) => sent,
        };
        let last = sent.output.0.saturating_add(sent.span.last_offset());
        let output = Span::new(sent.output, Gpa(last)).ok_or(Errno::OVERFLOW)?;
        let mut result = Ok(None);
        self.backing.pieces(output, &mut |piece, held| {
            if piece != output {
                return;
            }
            let (offset, file) = match held {
                Held::File(file, offset) => (offset, Some(file)),
                Held::Requests => (0, None),
            };
            let command = Command::DmaMap;
            let request = map_request(sent.span, sent.rights, offset);
            let id = request.and_then(|request| {
                channel.submit(command, &[request.as_bytes()], file.as_slice())
            });
            result = id.map(Some);
        });
        result
    }

    /// Sends all of `steps` and waits for all the replies. Gives back those
    /// that found nothing to map.
    fn send(&self, steps: &[Step]) -> Result<Vec<usize>, Failed> {
        let mut under_way: VecDeque<(u16, usize)> = VecDeque::new();
        let mut next: usize = 0;
        let mut done = Vec::new();
        let mut nothing = Vec::new();
        let mut failed: Option<Failed> = None;
        let fail = |failed: &mut Option<Failed>, first, error: &Error| {
            let lost = !matches!(error, Error::Refused { .. });
            match failed {
                Some(failed) if failed.first < first => failed.lost |= lost,
                _ => {
                    *failed = Some(Failed {
                        first,
                        behind: Vec::new(),
                        nothing: Vec::new(),
                        errno: error.errno(),
                        lost: lost || failed.as_ref().is_some_and(|failed| failed.lost),
                    });
                }
            }
        };
        loop {
            while failed.is_none() && under_way.len() < WINDOW {
                let Some(step) = steps.get(next) else { break };
                match self.submit(step) {
                    Ok(Some(id)) => under_way.push_back((id, next)),
                    Ok(None) => nothing.push(next),
                    Err(error) => fail(&mut failed, next, &error),
                }
                next = next.saturating_add(1);
            }
            let Some((id, at)) = under_way.pop_front() else {
                break;
            };
            let command = match steps.get(at) {
                Some(Step::Unmap(_)) => Command::DmaUnmap,
                _ => Command::DmaMap,
            };
            let until = self.client.until();
            let answer = until.and_then(|until| self.client.finish(id, command, until, |_| Ok(())));
            match answer {
                Ok(()) => done.push(at),
                // It does not have it: that is what was wanted.
                Err(Error::Refused { errno, .. })
                    if errno == Errno::NOENT && command == Command::DmaUnmap =>
                {
                    done.push(at);
                }
                Err(error) => fail(&mut failed, at, &error),
            }
        }
        match failed {
            None => Ok(nothing),
            Some(mut failed) => {
                failed.nothing = nothing;
                done.retain(|at| *at > failed.first);
                failed.behind = done;
                Err(failed)
            }
        }
    }

    /// Applies the maps that `changes` begin with: how many that are, or how
    /// many are in force, and why the next is not.
    fn map(
        &self,
        book: &mut BTreeMap<u64, Sent>,
        changes: &[Change],
    ) -> Result<usize, (usize, Errno)> {
        let mut steps = Vec::new();
        // The change that each message belongs to.
        let mut of = Vec::new();
        let mut refused = None;
        let mut at: usize = 0;
        while let Some((run, count)) = run(changes.get(at..).unwrap_or_default()) {
            let more = self.steps(&run);
            if overlaps(book, run.span) {
                refused = Some(Errno::EXIST);
                break;
            }
            let all = book.len().saturating_add(steps.len());
            if all.saturating_add(more.len()) > self.most() {
                refused = Some(Errno::NOSPC);
                break;
            }
            of.extend(more.iter().map(|_| at));
            steps.extend(more.into_iter().map(Step::Map));
            at = at.saturating_add(count);
        }
        let sent = self.send(&steps);
        let (applied, nothing) = match &sent {
            Ok(nothing) => (at, nothing),
            Err(failed) => {
                let applied = of.get(failed.first).copied();
                (applied.unwrap_or(at), &failed.nothing)
            }
        };
        for (index, (step, of)) in steps.iter().zip(&of).enumerate() {
            if let Step::Map(sent) = step
                && *of < applied
                && nothing.binary_search(&index).is_err()
            {
                book.insert(sent.span.first().0, *sent);
            }
        }
        let Err(failed) = sent else {
            return refused.map_or(Ok(at), |errno| Err((at, errno)));
        };
        // Whatever of the failed change and of those behind it was mapped goes.
        let before = (0..failed.first).filter(|step| of.get(*step) == Some(&applied));
        let back: Vec<_> = before
            .chain(failed.behind)
            .filter_map(|step| match steps.get(step) {
                Some(Step::Map(sent)) => Some(Step::Unmap(sent.span)),
                _ => None,
            })
            .collect();
        if failed.lost || self.send(&back).is_err() {
            self.give_up(book);
            return Err((0, failed.errno));
        }
        Err((applied, failed.errno))
    }

    /// Applies the unmaps that `changes` begin with.
    fn unmap(
        &self,
        book: &mut BTreeMap<u64, Sent>,
        changes: &[Change],
    ) -> Result<usize, (usize, Errno)> {
        let spans = changes.iter().map_while(|change| match change {
            Change::Unmap(span) => Some(*span),
            Change::Map(_) => None,
        });
        // What the device had, and what it is to have instead: several of
        // these may cut one piece.
        let mut gone = Vec::new();
        let mut stays: BTreeMap<u64, Sent> = BTreeMap::new();
        let mut count: usize = 0;
        let mut refused = None;
        for span in spans {
            let cut = touched(book, span);
            let mut rest = Vec::new();
            for sent in &cut {
                let below = span.first().0.checked_sub(1).map(Iova);
                let above = span.last().checked_add(1);
                let below = below.and_then(|last| Span::new(sent.span.first(), last));
                let above = above.and_then(|first| Span::new(first, sent.span.last()));
                for span in [below, above].into_iter().flatten() {
                    let stays = part(sent, span);
                    rest.extend(self.steps(&Mapping {
                        span,
                        output: stays.output.0,
                        rights: stays.rights,
                    }));
                }
            }
            let left = book.len().saturating_sub(cut.len());
            if !rest.is_empty() && left.saturating_add(rest.len()) > self.most() {
                refused = Some(Errno::NOSPC);
                break;
            }
            for sent in cut {
                let first = sent.span.first().0;
                book.remove(&first);
                if stays.remove(&first).is_none() {
                    gone.push(sent.span);
                }
            }
            for sent in rest {
                let first = sent.span.first().0;
                stays.insert(first, sent);
                book.insert(first, sent);
            }
            count = count.saturating_add(1);
        }
        let mut steps = Vec::new();
        for span in gone {
            steps.push(Step::Unmap(span));
            steps.extend(touched(&stays, span).into_iter().map(Step::Map));
        }
        match self.send(&steps) {
            Ok(nothing) => {
                for step in nothing {
                    if let Some(Step::Map(sent)) = steps.get(step) {
                        book.remove(&sent.span.first().0);
                    }
                }
                refused.map_or(Ok(count), |errno| Err((count, errno)))
            }
            Err(failed) => {
                self.give_up(book);
                Err((0, failed.errno))
            }
        }
    }

    /// Nothing is known of what the device has: it may keep nothing.
    fn give_up(&self, book: &mut BTreeMap<u64, Sent>) {
        self.client.disconnect();
        book.clear();
    }
}

fn overlaps(book: &BTreeMap<u64, Sent>, span: Span<Iova>) -> bool {
    let below = book.range(..=span.last().0).next_back();
    below.is_some_and(|(_, sent)| sent.span.overlaps(&span))
}

/// The pieces that have a byte of `span`.
fn touched(book: &BTreeMap<u64, Sent>, span: Span<Iova>) -> Vec<Sent> {
    let below = book.range(..span.first().0).next_back();
    let below = below.filter(|(_, sent)| sent.span.overlaps(&span));
    let within = book.range(span.first().0..=span.last().0);
    below
        .into_iter()
        .chain(within)
        .map(|(_, sent)| *sent)
        .collect()
}

impl<B: Backing> Listener for RemoteListener<B> {
    fn apply(&self, changes: &[Change]) -> Result<(), Partial> {
        let mut book = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        let mut applied: usize = 0;
        while let Some(next) = changes.get(applied) {
            let rest = changes.get(applied..).unwrap_or_default();
            let done = match next {
                Change::Map(_) => self.map(&mut book, rest),
                Change::Unmap(_) => self.unmap(&mut book, rest),
            };
            let (count, failed) = match done {
                Ok(count) => (count, None),
                Err((count, errno)) => (count, Some(errno)),
            };
            applied = applied.saturating_add(count);
            if let Some(errno) = failed {
                let errno = errno.raw_os_error();
                return Err(Partial { applied, errno });
            }
        }
        Ok(())
    }
}
