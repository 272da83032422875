//! Names of users and groups, as this machine knows them.
//!
//! A lookup may take long (a directory service), so answers are cached for a while. No lookup runs
//! under a lock.

use std::collections::HashMap;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nix::unistd::{Gid, Group, Uid, User};
use parking_lot::Mutex;

use crate::core::Owners;

/// How long an answer stays valid.
const BELIEVED: Duration = Duration::from_secs(60);

/// The most answers in the cache; the cache is emptied when it is full.
const REMEMBERED: usize = 10_000;

/// One of the four questions.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Question {
    User(u32),
    Group(u32),
    UserCalled(Box<[u8]>),
    GroupCalled(Box<[u8]>),
}

#[derive(Clone)]
enum Answer {
    Unknown,
    Called(Box<[u8]>),
    Number(u32),
}

/// The users and groups of this machine.
#[derive(Default)]
pub struct SystemOwners {
    answers: Mutex<HashMap<Question, (Instant, Answer)>>,
}

/// Returns the instance that all callers share, for its cache.
pub fn system() -> &'static SystemOwners {
    static SYSTEM: OnceLock<SystemOwners> = OnceLock::new();
    SYSTEM.get_or_init(SystemOwners::default)
}

impl SystemOwners {
    fn ask(&self, question: Question) -> Answer {
        let now = Instant::now();
        if let Some((at, answer)) = self.answers.lock().get(&question)
            && now.saturating_duration_since(*at) < BELIEVED
        {
            return answer.clone();
        }
        let answer = look_up(&question);
        let mut answers = self.answers.lock();
        if answers.len() >= REMEMBERED {
            answers.clear();
        }
        answers.insert(question, (now, answer.clone()));
        answer
    }
}

/// Asks the system. A user that cannot be looked up counts as unknown: the number is then used as
/// it is.
fn look_up(question: &Question) -> Answer {
    let called = |name: &str| Answer::Called(name.as_bytes().into());
    match question {
        Question::User(id) => match User::from_uid(Uid::from_raw(*id)) {
            Ok(Some(user)) => called(&user.name),
            _ => Answer::Unknown,
        },
        Question::Group(id) => match Group::from_gid(Gid::from_raw(*id)) {
            Ok(Some(group)) => called(&group.name),
            _ => Answer::Unknown,
        },
        Question::UserCalled(name) => match text(name).map(User::from_name) {
            Some(Ok(Some(user))) => Answer::Number(user.uid.as_raw()),
            _ => Answer::Unknown,
        },
        Question::GroupCalled(name) => match text(name).map(Group::from_name) {
            Some(Ok(Some(group))) => Answer::Number(group.gid.as_raw()),
            _ => Answer::Unknown,
        },
    }
}

/// Returns a name that can be looked up. The call would end the name at a NUL.
fn text(name: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(name).ok()?;
    (!text.is_empty() && !text.contains('\0')).then_some(text)
}

impl Owners for SystemOwners {
    fn user(&self, id: u32) -> Option<Box<[u8]>> {
        match self.ask(Question::User(id)) {
            Answer::Called(name) => Some(name),
            _ => None,
        }
    }

    fn group(&self, id: u32) -> Option<Box<[u8]>> {
        match self.ask(Question::Group(id)) {
            Answer::Called(name) => Some(name),
            _ => None,
        }
    }

    fn user_called(&self, name: &[u8]) -> Option<u32> {
        match self.ask(Question::UserCalled(name.into())) {
            Answer::Number(id) => Some(id),
            _ => None,
        }
    }

    fn group_called(&self, name: &[u8]) -> Option<u32> {
        match self.ask(Question::GroupCalled(name.into())) {
            Answer::Number(id) => Some(id),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_known_by_number_and_name_and_nobody_else_is_made_up() {
        let owners = SystemOwners::default();
        assert_eq!(owners.user(0).as_deref(), Some(&b"root"[..]));
        assert_eq!(owners.user_called(b"root"), Some(0));
        assert_eq!(owners.group_called(b"root"), Some(0));
        assert_eq!(owners.user_called(b"no such user here"), None);
        assert_eq!(owners.user_called(b"\xff\0"), None);
        assert_eq!(owners.user(3_999_999_999), None);
    }
}
