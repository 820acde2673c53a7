//! Submission and completion queues as rings of host memory. NVM Express 1.4
//! section 4.1.

use super::spec::{command, completion};

/// A queue of commands. The host moves the tail, the worker the head.
pub(super) struct SubmissionQueue {
    base: u64,
    /// Entries, at least 2.
    size: u32,
    head: u32,
    tail: u32,
    /// The completion queue of its commands.
    pub(super) cq: u16,
}

/// A queue of completions. The worker moves the tail, the host the head.
pub(super) struct CompletionQueue {
    base: u64,
    /// Entries, at least 2.
    size: u32,
    head: u32,
    tail: u32,
    /// The phase tag of the pass that the tail is in.
    pub(super) phase: bool,
    /// Interrupt Vector.
    pub(super) vector: u16,
    /// Interrupts Enabled.
    pub(super) interrupts: bool,
}

/// A doorbell was written with a value beyond its queue.
pub(super) struct BeyondQueue;

fn after(index: u32, size: u32) -> u32 {
    match index.saturating_add(1) {
        next if next < size => next,
        _ => 0,
    }
}

fn entry(base: u64, index: u32, size: u64) -> u64 {
    // Where a queue passes the top of the address space it begins anew at 0,
    // and is refused there like anywhere else.
    base.wrapping_add(u64::from(index).wrapping_mul(size))
}

impl SubmissionQueue {
    /// An empty queue of `last` + 1 entries at `base`.
    pub(super) fn new(base: u64, last: u16, cq: u16) -> Self {
        Self {
            base,
            size: u32::from(last).saturating_add(1),
            head: 0,
            tail: 0,
            cq,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.head == self.tail
    }

    /// The address of the oldest command.
    pub(super) fn front(&self) -> u64 {
        entry(self.base, self.head, command::SIZE)
    }

    /// Takes the oldest command off.
    pub(super) fn advance(&mut self) {
        self.head = after(self.head, self.size);
    }

    /// The head, as completions report it.
    pub(super) fn head(&self) -> u32 {
        self.head
    }

    pub(super) fn ring(&mut self, tail: u32) -> Result<(), BeyondQueue> {
        if tail >= self.size {
            return Err(BeyondQueue);
        }
        self.tail = tail;
        Ok(())
    }
}

impl CompletionQueue {
    /// An empty queue of `last` + 1 entries at `base`.
    pub(super) fn new(base: u64, last: u16, vector: u16, interrupts: bool) -> Self {
        Self {
            base,
            size: u32::from(last).saturating_add(1),
            head: 0,
            tail: 0,
            phase: true,
            vector,
            interrupts,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.head == self.tail
    }

    /// Completions that fit: one less than the entries when empty.
    pub(super) fn room(&self) -> u32 {
        let used = match self.tail.checked_sub(self.head) {
            Some(used) => used,
            None => self
                .size
                .saturating_sub(self.head)
                .saturating_add(self.tail),
        };
        self.size.saturating_sub(used).saturating_sub(1)
    }

    /// Where the next completion goes.
    pub(super) fn back(&self) -> u64 {
        entry(self.base, self.tail, completion::SIZE)
    }

    /// A completion was written at the back.
    pub(super) fn advance(&mut self) {
        self.tail = after(self.tail, self.size);
        self.phase ^= self.tail == 0;
    }

    pub(super) fn ring(&mut self, head: u32) -> Result<(), BeyondQueue> {
        if head >= self.size {
            return Err(BeyondQueue);
        }
        self.head = head;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_completion_queue_holds_one_less_than_its_entries_and_flips_phase() {
        let mut queue = CompletionQueue::new(0x1000, 2, 0, true);
        assert_eq!(queue.room(), 2);
        queue.advance();
        queue.advance();
        assert_eq!((queue.room(), queue.phase), (0, true));
        assert!(queue.ring(2).is_ok());
        assert_eq!((queue.room(), queue.back()), (2, 0x1020));
        queue.advance();
        assert_eq!(
            (queue.room(), queue.back(), queue.phase),
            (1, 0x1000, false)
        );
        assert!(queue.ring(3).is_err());
    }
}
