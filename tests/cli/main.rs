//! The command line, the control socket, and the users who may use them.

#[path = "../support/lab/mod.rs"]
mod lab;

mod as_user;
mod bad_input;
mod cli_contract;
mod config;
mod control_protocol;
mod control_users;
mod doctor;
mod documented;
mod local;
mod metrics;
mod rescue;
mod versions;
mod watch;
