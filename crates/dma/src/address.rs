//! Addresses by the space that they belong to, and inclusive spans of them.

use std::fmt;

/// An address of some 64-bit space; implemented by [`Iova`] and [`Gpa`].
pub trait Address: Copy + Ord + fmt::Debug + fmt::LowerHex {
    /// The address with this number.
    fn from_u64(raw: u64) -> Self;
    /// The number of this address.
    fn as_u64(self) -> u64;
}

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub u64);

        impl Address for $name {
            fn from_u64(raw: u64) -> Self {
                Self(raw)
            }
            fn as_u64(self) -> u64 {
                self.0
            }
        }
        impl $name {
            /// This address plus `offset` bytes; `None` past the top of the space.
            pub fn checked_add(self, offset: u64) -> Option<Self> {
                self.0.checked_add(offset).map(Self)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
        impl fmt::LowerHex for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::LowerHex::fmt(&self.0, f)
            }
        }
    };
}

address! {
    /// An I/O virtual address: what a device puts on the bus.
    Iova
}
address! {
    /// A guest-physical address.
    Gpa
}

/// A non-empty inclusive range of addresses, so that the whole 2^64 bytes of a
/// space are representable.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Span<A = Iova> {
    first: A,
    last: A,
}

impl<A: Address> Span<A> {
    /// The bytes from `first` to `last`, both included; `None` if `last` is
    /// below `first`.
    pub fn new(first: A, last: A) -> Option<Self> {
        (first <= last).then_some(Self { first, last })
    }

    /// `length` bytes from `first`; `None` if `length` is 0 or the range would
    /// pass the top of the space.
    pub fn with_length(first: A, length: u64) -> Option<Self> {
        let last = first.as_u64().checked_add(length.checked_sub(1)?)?;
        Some(Self {
            first,
            last: A::from_u64(last),
        })
    }

    /// All 2^64 addresses.
    pub fn whole() -> Self {
        Self {
            first: A::from_u64(0),
            last: A::from_u64(u64::MAX),
        }
    }

    /// The lowest address.
    pub fn first(&self) -> A {
        self.first
    }

    /// The highest address, included.
    pub fn last(&self) -> A {
        self.last
    }

    /// Bytes in the span, less one: the one form that always fits.
    pub fn last_offset(&self) -> u64 {
        self.last.as_u64().wrapping_sub(self.first.as_u64())
    }

    /// Bytes in the span; `None` for the whole space, whose size is 2^64.
    pub fn length(&self) -> Option<u64> {
        self.last_offset().checked_add(1)
    }

    /// Whether `address` lies in the span.
    pub fn contains(&self, address: A) -> bool {
        self.first <= address && address <= self.last
    }

    /// Whether every byte of `other` lies in the span.
    pub fn encloses(&self, other: &Self) -> bool {
        self.first <= other.first && other.last <= self.last
    }

    /// Whether the two spans share a byte.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    /// The bytes that both spans have.
    pub fn intersection(&self, other: &Self) -> Option<Self> {
        Self::new(self.first.max(other.first), self.last.min(other.last))
    }
}

impl<A: Address> fmt::Display for Span<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}-{:#x}", self.first, self.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_is_never_empty_and_never_wraps() {
        assert_eq!(Span::with_length(Iova(8), 0), None);
        assert_eq!(Span::with_length(Iova(u64::MAX), 2), None);
        assert_eq!(Span::new(Iova(2), Iova(1)), None);
        let top = Span::with_length(Iova(u64::MAX), 1).unwrap();
        assert_eq!(top.length(), Some(1));
    }

    #[test]
    fn the_whole_space_is_representable() {
        let whole = Span::<Iova>::whole();
        assert_eq!(whole.length(), None);
        assert_eq!(whole.last_offset(), u64::MAX);
        assert!(whole.contains(Iova(u64::MAX)));
    }

    #[test]
    fn intersection_is_what_both_have() {
        let a = Span::new(Iova(0), Iova(9)).unwrap();
        let b = Span::new(Iova(9), Iova(20)).unwrap();
        let c = Span::new(Iova(10), Iova(20)).unwrap();
        assert_eq!(a.intersection(&b), Span::new(Iova(9), Iova(9)));
        assert!(a.overlaps(&b) && !a.overlaps(&c));
        assert_eq!(a.intersection(&c), None);
    }
}
