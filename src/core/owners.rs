//! Names of users and groups.

/// The names of users and groups on a machine.
pub trait Owners: Send + Sync {
    /// Returns the name of a user.
    fn user(&self, id: u32) -> Option<Box<[u8]>>;

    /// Returns the name of a group.
    fn group(&self, id: u32) -> Option<Box<[u8]>>;

    /// Returns the number of the user with this name.
    fn user_called(&self, name: &[u8]) -> Option<u32>;

    /// Returns the number of the group with this name.
    fn group_called(&self, name: &[u8]) -> Option<u32>;
}
