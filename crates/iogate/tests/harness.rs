//! The Rust test API, and the examples of the guide.
#![allow(missing_docs)]

mod common;

use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::process::Command;

use iogate_dma::{Iova, Rights};
use iogate_harness::{Error, Machine, Outcome};
use iogate_passthrough::container::TYPE1V2;
use iogate_passthrough::device::CONFIG_REGION;
use iogate_passthrough::device::Region;
use iogate_passthrough::{Buffer, Container, Device, Group};

fn machine() -> Machine {
    Machine::new().iogate(env!("CARGO_BIN_EXE_iogate"))
}

// The guide shows what stands between the marks.
// begin
#[test]
fn the_driver_drives_an_nvme() -> Result<(), Error> {
    let outcome = machine()
        .nvme("64 MiB")
        .run(Command::new("iogate").arg("probe"))?;
    assert!(outcome.status.success(), "{}", outcome.stderr);
    assert!(outcome.faults.is_empty(), "{:?}", outcome.faults);
    assert_eq!(outcome.leaks, 0);
    Ok(())
}

#[test]
fn the_driver_survives_a_map_that_fails() -> Result<(), Error> {
    let machine = machine().nvme("64 MiB").inject("map:ENOMEM@1");
    let outcome = machine.run(Command::new("iogate").arg("probe"))?;
    assert_eq!(outcome.status.code(), Some(1), "{}", outcome.stderr);
    assert_eq!(outcome.leaks, 0);
    Ok(())
}
// end

/// This program again, as the driver with a bug.
fn faulty() -> Command {
    faulty_named("faulty_driver")
}

fn faulty_named(name: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--ignored", "--exact", name, "--nocapture"]);
    command
}

/// Has the edu write to a buffer that was unmapped, and leaks a mapping.
#[test]
#[ignore = "runs in a session that other tests make"]
fn faulty_driver() {
    let container = Container::open().unwrap();
    let group = Group::open(2).unwrap();
    group.set_container(&container).unwrap();
    container.set_iommu(TYPE1V2).unwrap();
    let device = group.device("0000:01:00.0").unwrap();
    let (config, bar0) = (
        device.region(CONFIG_REGION).unwrap(),
        device.region(0).unwrap(),
    );
    device.write(&config, 4, &[0b110]).unwrap();
    let buffer = Buffer::new(1 << 20).unwrap();
    container
        .map(Iova(0x20_0000), &buffer, Rights::READ_WRITE)
        .unwrap();
    container.unmap(Iova(0x20_0000), 1 << 20).unwrap();
    container
        .map(Iova(0x80_0000), &buffer, Rights::READ)
        .unwrap();
    for (register, value) in [
        (0x80, 0x4_0000),
        (0x88, 0x20_0000),
        (0x90, 4096),
        (0x98, 3_u64),
    ] {
        device.write(&bar0, register, &value.to_le_bytes()).unwrap();
    }
    let done = |bytes: [u8; 4]| u32::from_le_bytes(bytes) & 1 == 0;
    let mut command = [0; 4];
    for _ in 0..500 {
        device.read(&bar0, 0x98, &mut command).unwrap();
        if done(command) {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("the transfer does not end");
}

/// Does as `faulty_driver` does, by registers that it maps.
#[test]
#[ignore = "runs in a session that other tests make"]
fn mapped_driver() {
    let container = Container::open().unwrap();
    let group = Group::open(2).unwrap();
    group.set_container(&container).unwrap();
    container.set_iommu(TYPE1V2).unwrap();
    let device = group.device("0000:01:00.0").unwrap();
    let config = device.region(CONFIG_REGION).unwrap();
    device.write(&config, 4, &[0b110]).unwrap();
    let buffer = Buffer::new(1 << 20).unwrap();
    container
        .map(Iova(0x30_0000), &buffer, Rights::READ_WRITE)
        .unwrap();
    container.unmap(Iova(0x30_0000), 1 << 20).unwrap();
    let bar0 = device.region(0).unwrap();
    let registers = map_bar(&device, &bar0);
    ring(registers, 0x80, 0x4_0000);
    ring(registers, 0x88, 0x30_0000);
    ring(registers, 0x90, 4096);
    ring(registers, 0x98, 3);
    while load(registers, 0x98) & 1 == 1 {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

fn map_bar(device: &Device, bar: &Region) -> *mut u64 {
    // SAFETY: a new mapping.
    let registers = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            usize::try_from(bar.size).unwrap(),
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            device.as_fd().as_raw_fd(),
            libc::off_t::try_from(bar.offset).unwrap(),
        )
    };
    assert_ne!(registers, libc::MAP_FAILED);
    registers.cast()
}

#[inline(never)]
fn ring(registers: *mut u64, at: usize, value: u64) {
    // SAFETY: the BAR is mapped and longer than that.
    unsafe { registers.byte_add(at).write_volatile(value) };
}

fn load(registers: *const u64, at: usize) -> u64 {
    // SAFETY: as in `ring`.
    unsafe { registers.byte_add(at).read_volatile() }
}

/// `mapped_driver` in a session.
fn with_mapped_registers() -> Outcome {
    let driver = faulty_named("mapped_driver");
    let machine = Machine::new().iogate(env!("CARGO_BIN_EXE_iogate"));
    let machine = machine.device("edu,mmio=map").device("nvme").stacks();
    machine.run(&driver).unwrap()
}

#[test]
fn stacks_tell_the_line_that_rang_a_mapped_register() {
    let outcome = with_mapped_registers();
    assert!(outcome.status.success(), "{}", outcome.stderr);
    let cause = &outcome.report["faults"]["causes"][0];
    let mapped = line_in(&cause["mapping"]["mapped"]["stack"], "mapped_driver");
    let expected = line_of(".map(Iova(0x30_0000), &buffer");
    assert!((expected - 1..=expected + 1).contains(&mapped), "{mapped}");
    let unmapped = line_in(&cause["unmapped"]["stack"], "mapped_driver");
    assert_eq!(unmapped, line_of("container.unmap(Iova(0x30_0000)"));
    let stack = &cause["stack"];
    assert_eq!(
        line_in(stack, "mapped_driver"),
        line_of("ring(registers, 0x98, 3);")
    );
    assert_eq!(
        line_in(stack, "ring"),
        line_of("unsafe { registers.byte_add(at).write_volatile(value) };")
    );
}

#[test]
fn an_injected_failure_of_a_mapped_access_is_a_bus_error() {
    let machine = Machine::new().iogate(env!("CARGO_BIN_EXE_iogate"));
    let machine = machine.device("edu,mmio=map").device("nvme");
    let machine = machine.inject("region_write:EIO@3+");
    let outcome = machine.run(&faulty_named("mapped_driver")).unwrap();
    let signal = std::os::unix::process::ExitStatusExt::signal(&outcome.status);
    assert_eq!(signal, Some(libc::SIGBUS), "{}", outcome.stderr);
    // The handler of the Rust runtime tries once more, by the default action.
    assert_eq!(outcome.report["injected"]["rules"][0]["times"], 2);
}

#[test]
fn faults_and_leaks_of_a_program_are_told() {
    let outcome = machine().run(&faulty()).unwrap();
    assert!(outcome.status.success(), "{}", outcome.stderr);
    let [fault] = &outcome.faults[..] else {
        panic!("{:?}", outcome.faults);
    };
    assert_eq!((&*fault.device, &*fault.model), ("0000:01:00.0", "edu"));
    assert_eq!((&*fault.access, fault.iova), ("write", 0x20_0000));
    assert_eq!((&*fault.reason, fault.times), ("not mapped", 1));
    assert_eq!(outcome.leaks, 1);
}

/// The line of this file that has `text` first.
fn line_of(text: &str) -> u64 {
    let here = include_str!("harness.rs");
    let line = here.lines().position(|line| line.contains(text)).unwrap();
    u64::try_from(line).unwrap() + 1
}

/// The line at which `faulty_driver` stands in a stack of the report.
fn line_in_driver(stack: &serde_json::Value) -> u64 {
    line_in(stack, "faulty_driver")
}

/// The line at which function `name` of this file stands in a stack.
fn line_in(stack: &serde_json::Value, name: &str) -> u64 {
    let frames = stack["frames"].as_array().unwrap();
    let driver = frames.iter().find(|frame| {
        let function = frame["function"].as_str().unwrap_or_default();
        function.ends_with(&format!("::{name}"))
    });
    let driver = driver.unwrap_or_else(|| panic!("{stack:#}"));
    assert!(
        driver["file"]
            .as_str()
            .unwrap()
            .ends_with("tests/harness.rs")
    );
    driver["line"].as_u64().unwrap()
}

#[test]
fn stacks_tell_the_lines_that_mapped_unmapped_and_started_the_device() {
    let outcome = machine().stacks().run(&faulty()).unwrap();
    let cause = &outcome.report["faults"]["causes"][0];
    let mapped = line_in_driver(&cause["mapping"]["mapped"]["stack"]);
    let expected = line_of(".map(Iova(0x20_0000), &buffer");
    assert!((expected - 1..=expected + 1).contains(&mapped), "{mapped}");
    let unmapped = line_in_driver(&cause["unmapped"]["stack"]);
    assert_eq!(unmapped, line_of("container.unmap(Iova(0x20_0000)"));
    let started = line_in_driver(&cause["stack"]);
    let expected = line_of(".write(&bar0, register");
    assert!(
        (expected - 1..=expected + 1).contains(&started),
        "{started}"
    );
    let leak = &outcome.report["leaks"]["details"][0];
    let leaked = line_in_driver(&leak["mapped"]["stack"]);
    let expected = line_of(".map(Iova(0x80_0000), &buffer");
    assert!((expected - 1..=expected + 1).contains(&leaked), "{leaked}");
    let shown = outcome.stderr.contains("faulty_driver ");
    assert!(
        shown && outcome.stderr.contains("tests/harness.rs:"),
        "{}",
        outcome.stderr
    );
}

#[test]
fn a_sarif_result_stands_at_a_line_of_the_source() {
    let report = common::scratch("report.sarif");
    let mut command = Command::new(env!("CARGO_BIN_EXE_iogate"));
    command.args(["run", "--stacks", "--report"]).arg(&report);
    let driver = faulty();
    command.arg("--").arg(driver.get_program());
    assert!(
        command
            .args(driver.get_args())
            .output()
            .unwrap()
            .status
            .success()
    );
    let text = fs::read_to_string(report).unwrap();
    let sarif: serde_json::Value = serde_json::from_str(&text).unwrap();
    let result = &sarif["runs"][0]["results"][0];
    assert_eq!(result["ruleId"], "dma/not-mapped");
    let place = &result["locations"][0]["physicalLocation"];
    assert!(
        place["region"]["startLine"].as_u64().unwrap() > 0,
        "{result:#}"
    );
    assert_eq!(result["stacks"].as_array().unwrap().len(), 3);
    // What the schema does not have is lost on the way through its types, and
    // what it wants otherwise does not get in.
    let strict: serde_sarif::sarif::Sarif = serde_json::from_str(&text).unwrap();
    let mut back = serde_json::to_value(&strict).unwrap();
    without_nothing(&mut back);
    let mut written = sarif.clone();
    without_nothing(&mut written);
    assert_eq!(back, written);
}

/// Drops keys without a value.
fn without_nothing(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::Object(object) => {
            object.retain(|_, value| !value.is_null());
            object.values_mut().for_each(without_nothing);
        }
        serde_json::Value::Array(list) => list.iter_mut().for_each(without_nothing),
        _ => {}
    }
}

#[test]
fn accesses_of_mapped_registers_stand_in_a_timeline_as_calls_do() {
    let file = common::scratch("mapped.json");
    let mut command = Command::new(env!("CARGO_BIN_EXE_iogate"));
    command.args([
        "run",
        "--device=edu,mmio=map",
        "--device=nvme",
        "--timeline",
    ]);
    let driver = faulty_named("mapped_driver");
    command.arg(&file).arg("--").arg(driver.get_program());
    assert!(command.args(driver.get_args()).status().unwrap().success());
    let events: Vec<serde_json::Value> =
        serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
    let named = |name: &'static str| events.iter().filter(move |event| event["name"] == name);
    let map = named("ioctl_map_dma").next().unwrap();
    // BAR 0, whose offsets say that accesses are executed.
    let rung: Vec<_> = named("region_write")
        .filter(|event| event["args"]["offset"] == "0x18000000000098")
        .collect();
    assert_eq!(rung.len(), 1, "{events:#?}");
    assert_eq!(
        (&rung[0]["pid"], &rung[0]["tid"]),
        (&map["pid"], &map["tid"])
    );
    assert_eq!(rung[0]["ph"], "X");
    assert!(rung[0]["dur"].as_f64().unwrap() > 0.0);
    assert!(named("region_read").count() >= 1);
}

#[test]
fn without_stacks_none_are_taken() {
    let outcome = machine().run(&faulty()).unwrap();
    assert!(outcome.report["faults"]["causes"][0]["stack"].is_null());
}

#[test]
fn what_the_program_is_given_reaches_it() {
    let mut command = Command::new("sh");
    command.args(["-c", "echo $X; pwd; cat; exit 7"]);
    command.env("X", "y").current_dir("/");
    let outcome = machine().run(&command).unwrap();
    assert_eq!(outcome.status.code(), Some(7));
    assert_eq!(outcome.stdout, "y\n/\n");
}

#[test]
fn what_iogate_refuses_is_an_error_with_its_words() {
    let refused = machine().device("gpu").run(&Command::new("true"));
    assert!(matches!(&refused, Err(Error::Failed(text)) if text.contains("gpu")));
    let refused = Machine::new().iogate("/nowhere").run(&Command::new("true"));
    assert!(matches!(refused, Err(Error::NotStarted { .. })));
}

/// The first block of the guide that begins with `mark`.
fn guide(mark: &str) -> String {
    let text = common::document("guide.md");
    let (_, rest) = text.split_once(&format!("```{mark}\n")).unwrap();
    rest.split("```").next().unwrap().to_owned()
}

#[test]
fn the_guide_s_tests_are_tests_of_this_file() {
    let text = fs::read_to_string(common::root().join("crates/iogate/tests/harness.rs")).unwrap();
    let (_, rest) = text.split_once("// begin\n").unwrap();
    let shown = rest.split("// end\n").next().unwrap();
    assert!(guide("rust").contains(shown), "{shown}");
}

#[test]
fn the_workflow_s_run_is_a_run() {
    let workflow = common::root().join(".github/workflows/example.yml");
    let text = fs::read_to_string(workflow).unwrap();
    let (_, line) = text.split_once("target/release/iogate run ").unwrap();
    let words: Vec<_> = line.lines().next().unwrap().split(' ').collect();
    let report = common::scratch("report.sarif");
    let mut command = Command::new(env!("CARGO_BIN_EXE_iogate"));
    command.arg("run").args(words);
    command.current_dir(report.parent().unwrap());
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && report.exists(), "{errors}");
}

#[test]
fn the_guide_s_runner_runs_cargo_test_in_a_session() {
    let folder = common::scratch("runner");
    fs::create_dir_all(folder.join(".cargo")).unwrap();
    fs::create_dir_all(folder.join("src")).unwrap();
    fs::write(folder.join(".cargo/config.toml"), guide("toml")).unwrap();
    let manifest = "[package]\nname = \"driver\"\nedition = \"2024\"\n[workspace]\n";
    fs::write(folder.join("Cargo.toml"), manifest).unwrap();
    let test = "#[test]\nfn finds_devices() {\n    \
        assert!(std::path::Path::new(\"/sys/bus/pci/devices/0000:02:00.0\").exists());\n    \
        assert!(std::fs::File::open(\"/dev/vfio/vfio\").is_ok());\n}\n";
    fs::write(folder.join("src/lib.rs"), test).unwrap();
    let iogate = std::path::Path::new(env!("CARGO_BIN_EXE_iogate"));
    let path = std::env::var("PATH").unwrap();
    let path = format!("{}:{path}", iogate.parent().unwrap().display());
    let output = Command::new(env!("CARGO"))
        .args(["test", "--offline", "--lib"])
        .current_dir(&folder)
        .env("PATH", path)
        .env("CARGO_TARGET_DIR", folder.join("target"))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}{errors}");
    assert!(text.contains("test finds_devices ... ok"), "{text}");
}
