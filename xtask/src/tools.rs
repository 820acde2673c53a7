//! `cargo xtask fuzz` and `cargo xtask miri`: nightly tools, run in `fuzz/` outside the workspace.

use std::process::{Command, ExitCode, Stdio};

/// Runs `cargo +nightly fuzz ARGS` in `fuzz/`.
pub(crate) fn fuzz(arguments: &[String]) -> ExitCode {
    nightly(&["fuzz"], arguments, "cargo install cargo-fuzz")
}

/// Runs `cargo +nightly miri test ARGS` in `fuzz/`.
pub(crate) fn miri(arguments: &[String]) -> ExitCode {
    nightly(
        &["miri", "test"],
        arguments,
        "rustup +nightly component add miri",
    )
}

fn nightly(tool: &[&str], arguments: &[String], remedy: &str) -> ExitCode {
    let Ok(site) = crate::site::Site::find() else {
        eprintln!("xtask: no checkout here");
        return ExitCode::from(2);
    };
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
        .current_dir(site.root.join("fuzz"))
        .status();
    match status {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            println!("NOT RUN: {}: {error}", site.root.join("fuzz").display());
            ExitCode::FAILURE
        }
    }
}
