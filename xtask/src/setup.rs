//! What cases need before they can run, made once per run at the first need: the command itself,
//! the clients, the guests' kit, each person's place.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;

use crate::apt::{Set, Tree};
use crate::environment::Environment;
use crate::guest::Kit;
use crate::place::{Person, Place};
use crate::process::Job;
use crate::progress::Progress;
use crate::site::Site;
use crate::verdict::{About as _, Stop};

/// How the C client is linked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Linkage {
    Dynamic,
    Static,
}

type Once<T> = OnceCell<Result<T, Stop>>;

/// The workbench of a run.
pub(crate) struct Bench {
    pub(crate) site: Site,
    pub(crate) progress: Progress,
    /// Tests that the running case counts one by one: passed, failed.
    pub(crate) counted: Cell<Option<(u64, u64)>>,
    /// What was made, and the cases, with the seconds that each took by itself.
    pub(crate) took: RefCell<Vec<(String, f32)>>,
    /// What surrounds the running case, if it is not only the machine.
    pub(crate) environment: Cell<Option<Environment>>,
    iogate: Once<PathBuf>,
    c_clients: [Once<PathBuf>; 2],
    rust_client: Once<PathBuf>,
    vtd_client: Once<PathBuf>,
    kit: Once<Kit>,
    newest: Once<Kit>,
    newest_kernel: Once<Kit>,
    sets: RefCell<HashMap<&'static str, Result<Tree, Stop>>>,
    places: [Once<Rc<Place>>; 2],
}

impl Bench {
    pub(crate) fn new(site: Site, progress: Progress) -> Self {
        Self {
            site,
            progress,
            counted: Cell::default(),
            took: RefCell::default(),
            environment: Cell::default(),
            iogate: OnceCell::new(),
            c_clients: Default::default(),
            rust_client: OnceCell::new(),
            vtd_client: OnceCell::new(),
            kit: OnceCell::new(),
            newest: OnceCell::new(),
            newest_kernel: OnceCell::new(),
            sets: RefCell::default(),
            places: Default::default(),
        }
    }

    /// A cargo command in the workspace.
    pub(crate) fn cargo(&self) -> Command {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(cargo);
        command.current_dir(&self.site.root);
        for (name, _) in std::env::vars_os() {
            // What `cargo run` says about this package would look like a change to build scripts.
            let name = name.to_string_lossy();
            if name.starts_with("CARGO_PKG_")
                || name.starts_with("CARGO_MANIFEST_")
                || name == "LD_LIBRARY_PATH"
            {
                command.env_remove(&*name);
            }
        }
        command
    }

    /// The command under test.
    fn iogate(&self) -> Result<PathBuf, Stop> {
        self.once(&self.iogate, "build iogate", |log| {
            self.build("iogate", "iogate", log)
        })
    }

    /// The program on the vfio-ioctls crate.
    pub(crate) fn rust_client(&self) -> Result<PathBuf, Stop> {
        self.once(&self.rust_client, "build client vfio-ioctls", |log| {
            let name = "iogate-client-vfio-ioctls";
            self.build(name, name, log)
        })
    }

    /// The program that compares VT-d units with QEMU's.
    pub(crate) fn vtd_client(&self) -> Result<PathBuf, Stop> {
        self.once(&self.vtd_client, "build client vtd-qtest", |log| {
            let name = "iogate-client-vtd-qtest";
            self.build(name, name, log)
        })
    }

    fn build(&self, package: &str, binary: &str, log: &Path) -> Result<PathBuf, Stop> {
        let mut command = self.cargo();
        command.args(["build", "--release", "-p", package]);
        Job::new(command, log)
            .limit(1200)
            .run()?
            .success(&format!("building {package}"))?;
        Ok(self.site.target.join("release").join(binary))
    }

    /// The C program, compiled by the machine's compiler.
    pub(crate) fn c_client(&self, linkage: Linkage) -> Result<PathBuf, Stop> {
        let (slot, name) = match linkage {
            Linkage::Dynamic => (0, "c-dynamic"),
            Linkage::Static => (1, "c-static"),
        };
        self.once(
            &self.c_clients[slot],
            &format!("build client {name}"),
            |log| {
                let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
                let binary = self.site.xtask.join(name);
                let sources = self.site.root.join("tests/clients/c");
                let mut command = Command::new(&compiler);
                command
                    .args(["-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-pthread"])
                    .arg("-o")
                    .arg(&binary);
                if linkage == Linkage::Static {
                    command.arg("-static");
                }
                let mut files: Vec<PathBuf> = std::fs::read_dir(&sources)
                    .about(sources.display())?
                    .flatten()
                    .map(|entry| entry.path())
                    .filter(|path| path.extension().is_some_and(|extension| extension == "c"))
                    .collect();
                files.sort();
                command.args(files);
                let missing = || {
                    Stop::not_run(
                        format!("no C compiler {}", Path::new(&compiler).display()),
                        "install gcc, or name one in CC",
                    )
                };
                let ended = Job::new(command, log).run().map_err(|stop| match stop {
                    Stop::Failed { .. } => missing(),
                    other => other,
                })?;
                if linkage == Linkage::Static && ended.log.contains("cannot find -l") {
                    return Err(Stop::not_run(
                        "no static C library",
                        "install it (glibc-static, or libc6-dev)",
                    ));
                }
                ended.success("compiling the C client")?;
                Ok(binary)
            },
        )
    }

    /// QEMU, a kernel and their like.
    pub(crate) fn kit(&self) -> Result<Kit, Stop> {
        self.once(&self.kit, "provide QEMU and a kernel", |log| {
            Kit::provide(&self.site.xtask, log)
        })
    }

    /// The same with the newest QEMU.
    pub(crate) fn newest_kit(&self) -> Result<Kit, Stop> {
        let kit = self.kit()?;
        self.once(&self.newest, "provide the newest QEMU", |log| {
            let newest = kit.newest(&self.site.xtask, log)?;
            self.progress
                .print(&format!("  QEMU {}", newest.version(log)?));
            Ok(newest)
        })
    }

    /// The same with the newest kernel as well.
    pub(crate) fn newest_kernel_kit(&self) -> Result<Kit, Stop> {
        let kit = self.newest_kit()?;
        self.once(&self.newest_kernel, "provide the newest kernel", |log| {
            let newest = kit.newest_kernel(&self.site.xtask, log)?;
            self.progress
                .print(&format!("  Linux {}", newest.kernel_version()?));
            Ok(newest)
        })
    }

    /// The packages of a set, copied to where the person can run them.
    pub(crate) fn packages(&self, set: &Set, place: &Place) -> Result<Tree, Stop> {
        let known = self.sets.borrow().get(set.name()).cloned();
        let tree = known.unwrap_or_else(|| {
            let slot = OnceCell::new();
            let name = format!("provide packages {}", set.name());
            let tree = self.once(&slot, &name, |log| set.provide(&self.site.xtask, log));
            self.sets.borrow_mut().insert(set.name(), tree.clone());
            tree
        })?;
        let directory = place.tree(&tree.directory)?;
        Ok(Tree { directory })
    }

    /// A person's place, in which `iogate run` is known to work.
    pub(crate) fn place(&self, person: Person) -> Result<Rc<Place>, Stop> {
        let slot = match person {
            Person::Root => 0,
            Person::Ordinary => 1,
        };
        let iogate = self.iogate()?;
        let place = self.once(&self.places[slot], &format!("prepare {person}"), |log| {
            let place = Place::new(person)?;
            let mut doctor = place.command(&place.program(&iogate)?);
            doctor.arg("doctor");
            let ended = Job::new(doctor, log).user(place.user).limit(60).run()?;
            if ended.status.success() {
                return Ok(Rc::new(place));
            }
            let why = ended
                .log
                .lines()
                .find(|line| line.starts_with("MISSING"))
                .unwrap_or("no message");
            Err(Stop::not_run(
                format!("iogate doctor: {} ({})", why.trim(), ended.how()),
                "do what `iogate doctor` says",
            ))
        })?;
        place.environment.set(self.environment.get());
        Ok(place)
    }

    /// `iogate` in a person's place.
    pub(crate) fn iogate_of(&self, place: &Place) -> Result<PathBuf, Stop> {
        place.program(&self.iogate()?)
    }

    /// A step took so long, together with what was noted from `first` on.
    pub(crate) fn note(&self, name: &str, first: usize, seconds: f32) {
        let mut took = self.took.borrow_mut();
        let within: f32 = took.iter().skip(first).map(|(_, seconds)| seconds).sum();
        took.push((name.to_owned(), (seconds - within).max(0.0)));
    }

    fn once<T: Clone>(
        &self,
        slot: &Once<T>,
        name: &str,
        make: impl FnOnce(&Path) -> Result<T, Stop>,
    ) -> Result<T, Stop> {
        slot.get_or_init(|| {
            let log = self.site.log(&format!("setup {name}"));
            // The log of an earlier run; there may be none.
            let _ = std::fs::remove_file(&log);
            self.progress.begin(name);
            let first = self.took.borrow().len();
            let result = make(&log);
            let seconds = self.progress.end().as_secs_f32();
            self.note(name, first, seconds);
            let word = match &result {
                Ok(_) => "ok",
                Err(Stop::NotRun { .. }) => "NOT RUN",
                Err(_) => "FAILED",
            };
            self.progress
                .print(&format!("{:8} {name:<46} {seconds:6.1} s  {word}", "setup"));
            result.map_err(|stop| match stop {
                Stop::Failed { message, .. } => Stop::Failed {
                    message,
                    log: Some(log),
                },
                other => other,
            })
        })
        .clone()
    }
}
