//! Writes the manual pages, and the completions for bash, zsh and fish, into a directory:
//! `cargo run --example manual -- DIR`. They are made from the definition of the command line.

use std::path::Path;
use std::{env, fs, io};

use clap_complete::{Shell, generate_to};

fn main() -> io::Result<()> {
    let Some(dir) = env::args_os().nth(1) else {
        return Err(io::Error::other("usage: manual DIR"));
    };
    let dir = Path::new(&dir);
    let (pages, shells) = (dir.join("man1"), dir.join("completions"));
    fs::create_dir_all(&pages)?;
    fs::create_dir_all(&shells)?;
    // Help wraps at the width of the terminal, pages at that of their reader.
    let command = ferryfs::cli::command().term_width(0).max_term_width(0);
    clap_mangen::generate_to(command.clone(), &pages)?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        generate_to(shell, &mut command.clone(), "ferryfs", &shells)?;
    }
    Ok(())
}
