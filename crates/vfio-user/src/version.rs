//! VERSION: what each side can do, as JSON behind two numbers.

use serde_json::{Map, Value};
use zerocopy::{FromBytes, IntoBytes};

use crate::wire::{DEFAULT_MAPS, DEFAULT_PAGE_SIZES, DEFAULT_TRANSFER, Version};

/// The major version spoken; of its minor versions, 0 is the only one.
pub(crate) const MAJOR: u16 = 0;
/// The minor version spoken.
pub(crate) const MINOR: u16 = 0;

/// The most descriptors that any message may carry: what the kernel passes at
/// once, SCM_MAX_FD.
pub const MAX_FDS: u32 = 253;
/// The greatest transfer that can be agreed on. QEMU takes no more than this.
pub const MAX_TRANSFER: u32 = 64 << 20;

/// What a side takes. The default is what is offered to the other side unless
/// an embedder says otherwise.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Descriptors in a message that it receives; 1 to 253. QEMU 11 refuses a
    /// server that offers more than 16.
    pub max_msg_fds: u32,
    /// Bytes of one data transfer; at most [`MAX_TRANSFER`].
    pub max_data_xfer_size: u32,
    /// Mappings at a time.
    pub max_dma_maps: u32,
    /// Page sizes of mappings, or'ed together.
    pub pgsizes: u64,
    /// Whether REGION_WRITE_MULTI is understood.
    pub write_multiple: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_msg_fds: 16,
            max_data_xfer_size: DEFAULT_TRANSFER,
            max_dma_maps: DEFAULT_MAPS,
            pgsizes: DEFAULT_PAGE_SIZES,
            write_multiple: true,
        }
    }
}

impl Limits {
    /// What is taken for granted of a side that says nothing.
    pub const UNSAID: Self = Self {
        max_msg_fds: 1,
        max_data_xfer_size: DEFAULT_TRANSFER,
        max_dma_maps: DEFAULT_MAPS,
        pgsizes: DEFAULT_PAGE_SIZES,
        write_multiple: false,
    };
}

/// Which capabilities a side named.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Named {
    max_msg_fds: bool,
    max_data_xfer_size: bool,
    max_dma_maps: bool,
    pgsizes: bool,
    write_multiple: bool,
}

impl Named {
    pub(crate) const ALL: Self = Self {
        max_msg_fds: true,
        max_data_xfer_size: true,
        max_dma_maps: true,
        pgsizes: true,
        write_multiple: true,
    };
}

/// What a VERSION message says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Said {
    pub(crate) major: u16,
    pub(crate) minor: u16,
    pub(crate) limits: Limits,
    pub(crate) named: Named,
}

fn number(from: &Map<String, Value>, name: &str) -> Result<Option<u64>, &'static str> {
    match from.get(name) {
        None => Ok(None),
        Some(value) => value.as_u64().map(Some).ok_or("a capability is no number"),
    }
}

/// Reads the payload of a VERSION message.
///
/// The JSON is optional; if there is any it ends with NUL. Capabilities that are
/// not known, twin_socket among them, are passed over: not to repeat them means
/// not to have them.
pub(crate) fn parse(payload: &[u8]) -> Result<Said, &'static str> {
    let (version, json) =
        Version::read_from_prefix(payload).map_err(|_| "shorter than its two numbers")?;
    let mut said = Said {
        major: version.major,
        minor: version.minor,
        limits: Limits::UNSAID,
        named: Named::default(),
    };
    let Some((nul, json)) = json.split_last() else {
        return Ok(said);
    };
    if *nul != 0 {
        return Err("its JSON does not end with NUL");
    }
    if json.is_empty() {
        return Ok(said);
    }
    let json: Value = serde_json::from_slice(json).map_err(|_| "its JSON cannot be read")?;
    let json = json.as_object().ok_or("its JSON is no object")?;
    let Some(capabilities) = json.get("capabilities") else {
        return Ok(said);
    };
    let from = capabilities
        .as_object()
        .ok_or("capabilities is no object")?;
    let (limits, named) = (&mut said.limits, &mut said.named);
    if let Some(fds) = number(from, "max_msg_fds")? {
        limits.max_msg_fds = u32::try_from(fds).map_or(MAX_FDS, |fds| fds.min(MAX_FDS));
        named.max_msg_fds = true;
    }
    if let Some(bytes) = number(from, "max_data_xfer_size")? {
        limits.max_data_xfer_size =
            u32::try_from(bytes).map_or(MAX_TRANSFER, |bytes| bytes.min(MAX_TRANSFER));
        named.max_data_xfer_size = true;
    }
    if let Some(maps) = number(from, "max_dma_maps")? {
        limits.max_dma_maps = u32::try_from(maps).unwrap_or(u32::MAX);
        named.max_dma_maps = true;
    }
    if let Some(sizes) = number(from, "pgsizes")? {
        limits.pgsizes = sizes;
        named.pgsizes = true;
    }
    if let Some(value) = from.get("write_multiple") {
        limits.write_multiple = value.as_bool().ok_or("write_multiple is no boolean")?;
        named.write_multiple = true;
    }
    Ok(said)
}

/// The payload of a VERSION message that tells `limits`: those that are
/// `named`, and those without which the other side would assume too much.
pub(crate) fn format(limits: &Limits, named: Named) -> Vec<u8> {
    let mut capabilities = Map::new();
    let mut tell = |name: &str, named: bool, value: Value| {
        if named {
            capabilities.insert(name.to_owned(), value);
        }
    };
    let unsaid = Limits::UNSAID;
    tell(
        "max_msg_fds",
        named.max_msg_fds || limits.max_msg_fds < unsaid.max_msg_fds,
        limits.max_msg_fds.into(),
    );
    tell(
        "max_data_xfer_size",
        named.max_data_xfer_size || limits.max_data_xfer_size < unsaid.max_data_xfer_size,
        limits.max_data_xfer_size.into(),
    );
    tell(
        "max_dma_maps",
        named.max_dma_maps || limits.max_dma_maps < unsaid.max_dma_maps,
        limits.max_dma_maps.into(),
    );
    tell(
        "pgsizes",
        named.pgsizes || limits.pgsizes != unsaid.pgsizes,
        limits.pgsizes.into(),
    );
    tell(
        "write_multiple",
        named.write_multiple,
        limits.write_multiple.into(),
    );
    let mut json = Map::new();
    json.insert("capabilities".to_owned(), Value::Object(capabilities));
    let mut payload = Version {
        major: MAJOR,
        minor: MINOR,
    }
    .as_bytes()
    .to_vec();
    payload.extend_from_slice(Value::Object(json).to_string().as_bytes());
    payload.push(0);
    payload
}
