//! The writer's side of the radix: which area owns a slot, how many slots of
//! a node are in use, which nodes are free.
//!
//! A node that is taken out of the radix may still be read by who found it
//! earlier, so it is used again only when the guards of that time are gone.
//! The memory of nodes is not given back, so it follows the most that was
//! ever mapped at once, not how often.

use std::collections::VecDeque;
use std::sync::Arc;

use iogate_dma::{Gate, Grace};

use crate::areas::AreaId;
use crate::slot::Content;
use crate::table::{FIRST_LARGE, Node, Table, bits, number};

/// The owner of a slot that no area has.
pub(crate) const NONE: AreaId = 0;
/// The owner of a slot that stands for a node.
pub(crate) const CHILD: AreaId = u32::MAX;

/// Nodes that are retired under one grace.
const BATCH: usize = 32;

/// What the writer knows of one node.
struct Page {
    owners: Box<[AreaId]>,
    used: u32,
}

/// The nodes of one size.
struct Stock {
    /// A level with nodes of this size.
    level: u32,
    pages: Vec<Page>,
    free: Vec<Node>,
    retired: Vec<Node>,
    waiting: VecDeque<(Grace, Vec<Node>)>,
}

impl Stock {
    fn new(level: u32) -> Self {
        Self {
            level,
            pages: Vec::new(),
            free: Vec::new(),
            retired: Vec::new(),
            waiting: VecDeque::new(),
        }
    }

    fn width(&self) -> usize {
        1_usize.wrapping_shl(bits(self.level))
    }

    /// Bytes of one node: slots, owners, and the vectors around them.
    fn node_bytes(&self) -> u64 {
        (20_u64 << bits(self.level)).saturating_add(32)
    }

    fn bytes(&self) -> u64 {
        let nodes = u64::try_from(self.pages.len()).unwrap_or(u64::MAX);
        nodes.saturating_mul(self.node_bytes())
    }

    fn page(&self, node: Node) -> Option<&Page> {
        self.pages
            .get(usize::try_from(number(self.level, node)).ok()?)
    }

    fn page_mut(&mut self, node: Node) -> Option<&mut Page> {
        let at = usize::try_from(number(self.level, node)).ok()?;
        self.pages.get_mut(at)
    }

    /// A node that nobody reads, with all slots empty; a new one only if
    /// `room` bytes are enough for it.
    fn take(&mut self, table: &Table, gate: &Gate, room: u64) -> Option<Node> {
        if self.free.is_empty() {
            self.reclaim(gate);
        }
        match self.free.pop() {
            Some(node) => {
                self.wipe(table, node);
                Some(node)
            }
            None => self.grow(table, room),
        }
    }

    fn grow(&mut self, table: &Table, room: u64) -> Option<Node> {
        if room < self.node_bytes() {
            return None;
        }
        let node = table.node(self.level, u64::try_from(self.pages.len()).ok()?)?;
        self.pages.push(Page {
            owners: vec![NONE; self.width()].into_boxed_slice(),
            used: 0,
        });
        Some(node)
    }

    /// Empties a node that was retired with its contents.
    fn wipe(&mut self, table: &Table, node: Node) {
        let level = self.level;
        let Some(page) = self.page_mut(node).filter(|page| page.used != 0) else {
            return;
        };
        page.used = 0;
        for (place, owner) in page.owners.iter_mut().enumerate() {
            if std::mem::replace(owner, NONE) != NONE
                && let Some(slot) = table.slot(level, node, place)
            {
                slot.write(Content::Empty);
            }
        }
    }

    fn retire(&mut self, gate: &Gate, node: Node) {
        self.retired.push(node);
        if self.retired.len() >= BATCH {
            self.close_batch(gate);
        }
    }

    fn close_batch(&mut self, gate: &Gate) {
        let batch = std::mem::take(&mut self.retired);
        self.waiting.push_back((gate.grace(), batch));
    }

    fn reclaim(&mut self, gate: &Gate) {
        if self.waiting.is_empty() && !self.retired.is_empty() {
            self.close_batch(gate);
        }
        while let Some((grace, _)) = self.waiting.front_mut()
            && grace.has_passed()
            && let Some((_, batch)) = self.waiting.pop_front()
        {
            self.free.extend(batch);
        }
    }
}

/// The books of all nodes.
pub(crate) struct Books {
    gate: Arc<Gate>,
    limit: u64,
    large: Stock,
    small: Stock,
    /// An address to which empty nodes may lead.
    pub(crate) idle: Option<u64>,
}

impl Books {
    /// Books whose nodes may take `limit` bytes.
    pub(crate) fn new(gate: Arc<Gate>, limit: u64) -> Self {
        Self {
            gate,
            limit,
            large: Stock::new(FIRST_LARGE),
            small: Stock::new(0),
            idle: None,
        }
    }

    /// Bytes that the nodes take, those out of use included.
    pub(crate) fn bytes(&self) -> u64 {
        self.large.bytes().saturating_add(self.small.bytes())
    }

    fn stock(&self, level: u32) -> &Stock {
        if level < FIRST_LARGE {
            &self.small
        } else {
            &self.large
        }
    }

    fn stock_mut(&mut self, level: u32) -> (&mut Stock, &Gate) {
        if level < FIRST_LARGE {
            (&mut self.small, &self.gate)
        } else {
            (&mut self.large, &self.gate)
        }
    }

    /// An empty node for `level`; `None` at the limit.
    pub(crate) fn take(&mut self, table: &Table, level: u32) -> Option<Node> {
        let room = self.limit.saturating_sub(self.bytes());
        let (stock, gate) = self.stock_mut(level);
        stock.take(table, gate, room)
    }

    /// Puts away a node that the radix no longer names, whatever is in it.
    pub(crate) fn retire(&mut self, level: u32, node: Node) {
        let (stock, gate) = self.stock_mut(level);
        stock.retire(gate, node);
    }

    /// Who owns the slot: an area, [`NONE`] or [`CHILD`].
    pub(crate) fn owner(&self, level: u32, node: Node, place: usize) -> AreaId {
        let page = self.stock(level).page(node);
        page.and_then(|page| page.owners.get(place))
            .copied()
            .unwrap_or(NONE)
    }

    /// The first slot from `from` to `to` that is not empty, and its owner.
    pub(crate) fn next_used(
        &self,
        level: u32,
        node: Node,
        from: usize,
        to: usize,
    ) -> Option<(usize, AreaId)> {
        let owners = self.stock(level).page(node)?.owners.get(from..=to)?;
        let (offset, owner) = owners.iter().enumerate().find(|(_, own)| **own != NONE)?;
        Some((from.checked_add(offset)?, *owner))
    }

    /// Slots of the node that are not empty.
    pub(crate) fn used(&self, level: u32, node: Node) -> u32 {
        self.stock(level).page(node).map_or(0, |page| page.used)
    }

    pub(crate) fn set_owner(&mut self, level: u32, node: Node, place: usize, owner: AreaId) {
        let (stock, _) = self.stock_mut(level);
        let Some(page) = stock.page_mut(node) else {
            return;
        };
        let Some(own) = page.owners.get_mut(place) else {
            return;
        };
        let (before, now) = (u32::from(*own != NONE), u32::from(owner != NONE));
        page.used = page.used.wrapping_sub(before).wrapping_add(now);
        *own = owner;
    }
}
