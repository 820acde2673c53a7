//! The command line of `cargo xtask test`.

use crate::cases::Tier;

/// What the person asked for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    /// Empty means every tier.
    pub(crate) tiers: Vec<Tier>,
    pub(crate) list: bool,
    pub(crate) strict: bool,
    /// A substring of the case's name.
    pub(crate) filter: Option<String>,
}

impl Options {
    /// Reads the arguments after `test`. The error is a sentence for the person.
    pub(crate) fn parse(arguments: &[String]) -> Result<Self, String> {
        let mut options = Self::default();
        let mut rest = arguments.iter().map(String::as_str);
        while let Some(argument) = rest.next() {
            match argument {
                "--list" => options.list = true,
                "--strict" => options.strict = true,
                "--tier" => {
                    let name = rest.next().ok_or("--tier needs unit, clients or guests")?;
                    options.tiers.push(Tier::parse(name)?);
                }
                _ if argument.starts_with("--tier=") => {
                    options
                        .tiers
                        .push(Tier::parse(&argument["--tier=".len()..])?);
                }
                _ if argument.starts_with('-') => {
                    return Err(format!("unknown option {argument}"));
                }
                _ if options.filter.is_some() => {
                    return Err(format!("more than one FILTER: {argument}"));
                }
                _ => options.filter = Some(argument.to_owned()),
            }
        }
        Ok(options)
    }

    /// Whether a case was asked for.
    pub(crate) fn selects(&self, tier: Tier, name: &str) -> bool {
        (self.tiers.is_empty() || self.tiers.contains(&tier))
            && self
                .filter
                .as_ref()
                .is_none_or(|filter| name.contains(filter))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options, String> {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        Options::parse(&words)
    }

    #[test]
    fn tiers_add_up_and_the_filter_is_a_substring() {
        let options = parse("--tier unit --tier=guests --strict legacy").unwrap();
        assert!(options.strict);
        assert!(options.selects(Tier::Guests, "qemu/legacy/root"));
        assert!(!options.selects(Tier::Guests, "qemu/iommufd/root"));
        assert!(!options.selects(Tier::Clients, "c/legacy"));
    }

    #[test]
    fn unknown_words_are_errors() {
        assert!(parse("--tier moon").is_err());
        assert!(parse("--tier").is_err());
        assert!(parse("--fast").is_err());
        assert!(parse("one two").is_err());
    }
}
