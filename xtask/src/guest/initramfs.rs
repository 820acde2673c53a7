//! An initramfs: a cpio archive in the "newc" format (kernel: Documentation/driver-api/early-userspace/buffer-format.rst).

/// An archive being written.
pub(crate) struct Initramfs {
    bytes: Vec<u8>,
    inode: u32,
}

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;

impl Initramfs {
    /// An archive with the directories that an init script mounts on.
    pub(crate) fn new() -> Self {
        let mut archive = Self {
            bytes: Vec::new(),
            inode: 0,
        };
        for name in ["bin", "dev", "lib", "proc", "sys", "tmp"] {
            archive.entry(name, DIRECTORY, &[]);
        }
        archive
    }

    /// Adds an executable file.
    pub(crate) fn file(&mut self, name: &str, content: &[u8]) {
        self.entry(name, PROGRAM, content);
    }

    /// Ends the archive.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.inode += 1;
        let size = u32::try_from(content.len()).expect("our files are small");
        let name_size = u32::try_from(name.len() + 1).expect("our names are short");
        self.bytes.extend(b"070701");
        // inode, mode, uid, gid, links, mtime, size, device and special device numbers, name size, checksum
        for field in [self.inode, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0] {
            self.bytes.extend(format!("{field:08X}").bytes());
        }
        self.bytes.extend(name.bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend(content);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_110_bytes_and_everything_is_aligned() {
        let mut archive = Initramfs {
            bytes: Vec::new(),
            inode: 0,
        };
        archive.file("init", b"hello");
        assert_eq!(&archive.bytes[..6], b"070701");
        assert_eq!(&archive.bytes[54..62], b"00000005");
        assert_eq!(&archive.bytes[110..115], b"init\0");
        assert_eq!(&archive.bytes[116..121], b"hello");
        assert_eq!(archive.bytes.len(), 124);
        assert_eq!(archive.finish().len() % 4, 0);
    }
}
