//! `cargo xtask fuzz` and `cargo xtask miri`: nightly tools, run in `fuzz/` outside the workspace.

use std::process::{Command, ExitCode, Stdio};

/// Runs `cargo +nightly fuzz ARGS` in `fuzz/`. `run NAME` without inputs of
/// its own starts from the committed corpus, and keeps what it finds apart.
pub(crate) fn fuzz(arguments: &[String]) -> ExitCode {
    let mut arguments = arguments.to_vec();
    let own_inputs = arguments.get(2).is_some_and(|next| !next.starts_with('-'));
    if let [run, name, ..] = arguments.as_slice()
        && run == "run"
        && !own_inputs
        && let Ok(site) = crate::site::Site::find()
        && site.root.join("fuzz/seeds").join(name).is_dir()
    {
        let directories = [format!("corpus/{name}"), format!("seeds/{name}")];
        if let Err(error) = std::fs::create_dir_all(site.root.join("fuzz").join(&directories[0])) {
            eprintln!("xtask: fuzz/{}: {error}", directories[0]);
            return ExitCode::FAILURE;
        }
        arguments.splice(2..2, directories);
    }
    nightly("", &["fuzz"], &arguments, "cargo install cargo-fuzz")
}

/// Runs `cargo +nightly miri test ARGS` in `fuzz/miri/`.
pub(crate) fn miri(arguments: &[String]) -> ExitCode {
    nightly(
        "miri",
        &["miri", "test"],
        arguments,
        "rustup +nightly component add miri",
    )
}

fn nightly(place: &str, tool: &[&str], arguments: &[String], remedy: &str) -> ExitCode {
    let Ok(site) = crate::site::Site::find() else {
        eprintln!("xtask: no checkout here");
        return ExitCode::from(2);
    };
    let place = site.root.join("fuzz").join(place);
    // `cargo run` names its own toolchain in these, which would win over `+nightly`.
    let cargo = || {
        let mut command = Command::new("cargo");
        command
            .env_remove("CARGO")
            .env_remove("RUSTUP_TOOLCHAIN")
            .arg("+nightly")
            .arg(tool[0]);
        command
    };
    let present = cargo()
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if !present {
        println!(
            "NOT RUN: no nightly cargo {}; rustup toolchain install nightly, then {remedy}",
            tool[0]
        );
        return ExitCode::FAILURE;
    }
    let status = cargo()
        .args(&tool[1..])
        .args(arguments)
        .current_dir(&place)
        .status();
    match status {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            println!("NOT RUN: {}: {error}", place.display());
            ExitCode::FAILURE
        }
    }
}
