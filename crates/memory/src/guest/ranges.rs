//! The list of a guest's ranges, and the window kept as the list says.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use iogate_dma::{Gpa, Rights, Span};
use rustix::fs::FileType;
use rustix::io::Errno;

use super::far::{Far, Space};
use super::{Backed, Backing, MapError, Remote};

/// Ranges that are not equal. Each takes a few mappings of the kernel's, of
/// which a process may have 65,530.
const MOST: usize = 8192;
const PAGE: u64 = 4096;

/// `f_type` of FUSE: a file whose pages come when its maker likes.
const FUSE: i64 = 0x6573_5546;

/// Device, inode and offset of a file.
type Place = (u64, u64, u64);

enum End {
    File {
        file: Arc<OwnedFd>,
        offset: u64,
        place: Place,
        /// Whether it is mapped at its own address.
        near: bool,
        far: Option<Arc<Far>>,
    },
    Remote(Arc<dyn Remote>),
}

pub(super) struct Range {
    /// Ascending in the order of adding.
    id: u64,
    first: u64,
    last: u64,
    rights: Rights,
    end: End,
    users: usize,
}

impl Range {
    fn covers(&self, address: u64) -> bool {
        (self.first..=self.last).contains(&address)
    }

    fn overlaps(&self, first: u64, last: u64) -> bool {
        self.first <= last && first <= self.last
    }
}

/// Where a piece of an access is.
pub(super) enum Piece {
    /// In the window, at its own address.
    Near,
    /// In the upper half: the range, and the offset in it.
    Far(Arc<Far>, u64),
    Remote(Arc<dyn Remote>),
}

#[derive(Default)]
pub(super) struct Ranges {
    /// In the order of their ids.
    ranges: Vec<Range>,
    next: u64,
}

impl Ranges {
    /// The range that counts at `address`.
    fn top(&self, address: u64) -> Option<&Range> {
        let mut newest_first = self.ranges.iter().rev();
        newest_first.find(|range| range.covers(address))
    }

    /// The last address up to which what counts at `address` counts, given what
    /// that is.
    fn reach(&self, address: u64, top: Option<&Range>) -> u64 {
        let own = top.map_or(u64::MAX, |range| range.last);
        let id = top.map(|range| range.id);
        let newer = self.ranges.iter().rev();
        let newer = newer.take_while(|range| Some(range.id) > id);
        let next = newer.map(|range| range.first).filter(|at| *at > address);
        next.min().map_or(own, |at| own.min(at.saturating_sub(1)))
    }

    /// What stands at `address`, and the last address of that piece.
    pub(super) fn piece(&self, address: u64) -> Option<(u64, Piece)> {
        let top = self.top(address)?;
        let piece = match &top.end {
            End::File { near: true, .. } => Piece::Near,
            End::File { far, .. } => {
                let offset = address.saturating_sub(top.first);
                Piece::Far(Arc::clone(far.as_ref()?), offset)
            }
            End::Remote(remote) => Piece::Remote(Arc::clone(remote)),
        };
        Some((self.reach(address, Some(top)), piece))
    }

    pub(super) fn backed_from(&self, from: u64) -> Option<Backed> {
        let mut at = from;
        loop {
            let top = self.top(at);
            let last = self.reach(at, top);
            if let Some(Range {
                first,
                rights,
                end: End::File { file, offset, .. },
                ..
            }) = top
            {
                return Some(Backed {
                    span: Span::new(Gpa(at), Gpa(last))?,
                    file: Arc::clone(file),
                    offset: offset.saturating_add(at.saturating_sub(*first)),
                    rights: *rights,
                });
            }
            at = last.checked_add(1)?;
        }
    }

    pub(super) fn spans(&self) -> Vec<Span<Gpa>> {
        let ranges = self.ranges.iter();
        ranges
            .filter_map(|range| Span::new(Gpa(range.first), Gpa(range.last)))
            .collect()
    }

    /// Adds a range, or one more user of an equal one. Gives the range's id, and
    /// whether it is new.
    pub(super) fn add(
        &mut self,
        space: &Arc<Space>,
        span: Span<Gpa>,
        rights: Rights,
        backing: Backing,
    ) -> Result<(u64, bool), MapError> {
        let (first, last) = (span.first().0, span.last().0);
        let whole = first.is_multiple_of(PAGE) && last.wrapping_add(1).is_multiple_of(PAGE);
        let length = span.length().filter(|_| whole && rights != Rights::NONE);
        let length = length.ok_or(MapError::Malformed(span))?;
        let end = match backing {
            Backing::Remote(remote) => End::Remote(remote),
            Backing::File { file, offset } => {
                let place = check_file(&file, offset, length)
                    .map_err(|reason| MapError::File { span, reason })?;
                if let Some(id) = self.share(span, rights, place) {
                    return Ok((id, false));
                }
                End::File {
                    file,
                    offset,
                    place,
                    near: false,
                    far: None,
                }
            }
        };
        if self.ranges.len() >= MOST {
            return Err(MapError::Ranges(MOST));
        }
        let mut range = Range {
            id: self.next,
            first,
            last,
            rights,
            end,
            users: 1,
        };
        self.make_way(space, &range);
        let shown = match &mut range.end {
            End::File { .. } => show_new(space, &mut range, length),
            End::Remote(_) => hide(space, first, last),
        };
        self.next = self.next.saturating_add(1);
        let id = range.id;
        self.ranges.push(range);
        if let Err(error) = shown {
            // The window may show a part of it.
            drop(self.remove(space, id));
            return Err(MapError::Refused { span, error });
        }
        Ok((id, true))
    }

    /// One more user of a range that is equal in all.
    fn share(&mut self, span: Span<Gpa>, rights: Rights, place: Place) -> Option<u64> {
        let range = self.ranges.iter_mut().find(|range| {
            let is_same = matches!(&range.end, End::File { place: other, .. } if *other == place);
            is_same
                && (range.first, range.last) == (span.first().0, span.last().0)
                && range.rights == rights
        })?;
        range.users = range.users.saturating_add(1);
        Some(range.id)
    }

    /// Takes ranges of huge pages that `new` overlaps out of the lower half: a
    /// part of such a mapping cannot be replaced.
    fn make_way(&mut self, space: &Space, new: &Range) {
        let below = self.ranges.iter_mut();
        for range in below.filter(|range| range.overlaps(new.first, new.last)) {
            if let End::File {
                near, far: Some(_), ..
            } = &mut range.end
                && *near
                && hide(space, range.first, range.last).is_ok()
            {
                *near = false;
            }
        }
    }

    /// Takes one user of a range away; the range, if it was the last. The
    /// window then shows what lies below.
    pub(super) fn remove(&mut self, space: &Space, id: u64) -> Option<Range> {
        let index = self.ranges.iter().position(|range| range.id == id)?;
        let range = self.ranges.get_mut(index)?;
        range.users = range.users.saturating_sub(1);
        if range.users > 0 {
            return None;
        }
        let gone = self.ranges.remove(index);
        let mut at = gone.first;
        loop {
            let top = self.top(at);
            let last = self.reach(at, top).min(gone.last);
            if top.is_none_or(|top| top.id < gone.id) {
                // The kernel refuses only what it has no memory for, with far
                // more mappings than `MOST` allows.
                let _ = show_again(space, top, at, last);
            }
            match last.checked_add(1) {
                Some(next) if next <= gone.last => at = next,
                _ => return Some(gone),
            }
        }
    }
}

/// What identifies the file's bytes, if they can be used.
fn check_file(file: &OwnedFd, offset: u64, length: u64) -> Result<Place, &'static str> {
    let stat = rustix::fs::fstat(file).map_err(|_| "it cannot be looked at")?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err("it is no regular file");
    }
    let system = rustix::fs::fstatfs(file).map_err(|_| "it cannot be looked at")?;
    if system.f_type == FUSE {
        return Err("it is a file of a FUSE file system, which could keep us waiting");
    }
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    let end = offset.checked_add(length);
    match end.is_some_and(|end| end <= size) {
        _ if !offset.is_multiple_of(PAGE) => Err("its offset is not of whole pages"),
        true => Ok((stat.st_dev, stat.st_ino, offset)),
        false => Err("it ends before the range does"),
    }
}

/// Bytes of a page of the file: more than [`PAGE`] only where mappings have to
/// be of whole ones.
fn page_of(file: &OwnedFd) -> u64 {
    const HUGETLBFS: i64 = 0x9584_58f6;
    let system = rustix::fs::fstatfs(file);
    let huge = system.ok().filter(|system| system.f_type == HUGETLBFS);
    let page = huge.and_then(|system| u64::try_from(system.f_bsize).ok());
    page.filter(|page| page.is_power_of_two())
        .unwrap_or(PAGE)
        .max(PAGE)
}

/// Maps a new range: at its own address where that is possible. A range of huge
/// pages is mapped in the upper half too, for when it has to make way.
fn show_new(space: &Arc<Space>, range: &mut Range, length: u64) -> io::Result<()> {
    let End::File {
        file,
        offset,
        near,
        far,
        ..
    } = &mut range.end
    else {
        return Ok(());
    };
    let writable = range.rights.allows(iogate_dma::Access::Write);
    let page = page_of(file);
    // The kernel makes a mapping of huge pages longer than asked for.
    let is_whole = [range.first, length, *offset]
        .iter()
        .all(|number| number.is_multiple_of(page));
    let fits = range.last < space.near() && is_whole;
    if !fits || page > PAGE {
        let placed = space.place(file.as_fd(), (*offset, length), page, writable)?;
        *far = Some(Arc::new(placed));
    }
    if !fits {
        hide(space, range.first, range.last)?;
    } else {
        let from = (file.as_fd(), *offset);
        match space.window().show(range.first, length, from, writable) {
            Ok(()) => *near = true,
            Err(error) if far.is_none() => return Err(error),
            Err(_) => hide(space, range.first, range.last)?,
        }
    }
    Ok(())
}

/// Has the window show what counts between two addresses, as it is now.
fn show_again(space: &Space, top: Option<&Range>, first: u64, last: u64) -> io::Result<()> {
    let Some(range) = top else {
        return hide(space, first, last);
    };
    match &range.end {
        End::File {
            file,
            offset,
            near: true,
            ..
        } => {
            let offset = offset.saturating_add(first.saturating_sub(range.first));
            let length = last.saturating_sub(first).saturating_add(1);
            let writable = range.rights.allows(iogate_dma::Access::Write);
            let window = space.window();
            let shown = window.show(first, length, (file.as_fd(), offset), writable);
            shown.or_else(|_| hide(space, first, last))
        }
        _ => hide(space, first, last),
    }
}

/// Has the window show nothing between two addresses.
fn hide(space: &Space, first: u64, last: u64) -> io::Result<()> {
    let last = last.min(space.near().saturating_sub(1));
    match last.checked_sub(first) {
        None => Ok(()),
        Some(length) => {
            let length = length.checked_add(1).ok_or(Errno::INVAL)?;
            space.window().hide(first, length)
        }
    }
}
