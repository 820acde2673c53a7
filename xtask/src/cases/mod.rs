//! The table of cases.

mod clients;
mod command;
mod confined;
mod dmar;
mod dpdk;
mod frames;
mod gdb;
mod guests;
mod migration;
mod unit;
mod user;
mod vtd;
mod vtd_guests;
mod vtd_interrupts;

use std::fmt;
use std::path::Path;

use crate::setup::Bench;
use crate::verdict::Stop;

/// What a case needs, from little to much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tier {
    /// A Rust compiler.
    Unit,
    /// A C compiler, and a machine on which `iogate run` works.
    Clients,
    /// Packages of the distribution as well.
    Guests,
}

impl Tier {
    /// Reads a tier's name.
    pub(crate) fn parse(name: &str) -> Result<Self, String> {
        [Self::Unit, Self::Clients, Self::Guests]
            .into_iter()
            .find(|tier| tier.name() == name)
            .ok_or_else(|| format!("no tier {name}: there are unit, clients and guests"))
    }

    fn name(self) -> &'static str {
        match self {
            Self::Unit => "unit",
            Self::Clients => "clients",
            Self::Guests => "guests",
        }
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(self.name())
    }
}

/// What a case does: the bench, and its log.
pub(crate) type Run = Box<dyn Fn(&Bench, &Path) -> Result<(), Stop>>;

/// One case.
pub(crate) struct Case {
    pub(crate) tier: Tier,
    pub(crate) name: String,
    pub(crate) run: Run,
}

impl Case {
    fn new(
        tier: Tier,
        name: String,
        run: impl Fn(&Bench, &Path) -> Result<(), Stop> + 'static,
    ) -> Self {
        Self {
            tier,
            name,
            run: Box::new(run),
        }
    }
}

/// Every case, in the order in which they run.
pub(crate) fn all() -> Vec<Case> {
    let mut cases = unit::cases();
    cases.extend(clients::cases());
    cases.extend(command::cases());
    cases.extend(confined::cases());
    cases.extend(user::cases());
    cases.extend(dmar::cases());
    cases.extend(dpdk::cases());
    cases.extend(frames::cases());
    cases.extend(gdb::cases());
    cases.extend(guests::cases());
    cases.extend(migration::cases());
    cases.extend(vtd::cases());
    cases.extend(vtd_guests::cases());
    cases.extend(vtd_interrupts::cases());
    cases
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn no_two_cases_have_the_same_name() {
        let cases = all();
        let names: HashSet<&str> = cases.iter().map(|case| case.name.as_str()).collect();
        assert_eq!(names.len(), cases.len());
    }

    #[test]
    fn every_case_stands_in_the_readme_of_the_tests() {
        let readme = include_str!("../../../tests/README.md");
        for case in all() {
            // A family is said once: the name, or as much of it as stands before a slash.
            let told = case
                .name
                .match_indices('/')
                .map(|(end, _)| &case.name[..end])
                .chain([case.name.as_str()])
                .any(|name| readme.contains(&format!("`{name}`")));
            assert!(told, "tests/README.md says nothing of {}", case.name);
        }
    }
}
