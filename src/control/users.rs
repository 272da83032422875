//! The users of a file system, as text.

use crate::control::protocol::{UsedBy, Users};
use crate::core::{ForeignText, path_of_text, quoted};

/// The most users that are named.
const USERS: usize = 10;

/// Returns the users of a file system in one line.
pub fn users(users: &Users) -> String {
    let mut named: Vec<String> = users.found.iter().take(USERS).map(used_by).collect();
    if users.found.len() > USERS {
        named.push(format!("{} more", users.found.len() - USERS));
    }
    match (named.is_empty(), users.some_unseen) {
        (true, true) => {
            named.push("a process that this user may not inspect (try it as root)".into())
        }
        (true, false) => named.push("something that cannot be seen from here".into()),
        (false, true) => {
            named.push("perhaps processes that this user may not inspect".into());
        }
        (false, false) => {}
    }
    match named.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, others)) => format!("{} and {last}", others.join(", ")),
        None => String::new(),
    }
}

fn used_by(user: &UsedBy) -> String {
    let path = quoted(&path_of_text(&user.path));
    match (&user.program, user.pid, user.is_mount) {
        (Some(program), Some(pid), true) => {
            format!(
                "{} (pid {pid}), which has it mounted at {path}",
                program.escaped()
            )
        }
        (Some(program), Some(pid), false) => format!("{} (pid {pid}: {path})", program.escaped()),
        _ => format!("a mount at {path}"),
    }
}
