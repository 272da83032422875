//! What an end of the volume would remove, for `ferryfs leave`. It only looks.

use super::Service;
use crate::control::protocol::{Amount, ControlError, ErrorCode, LeavePlan};
use crate::core::ForeignText;
use crate::daemon::leave::{amount, in_the_way, local_files, lost_line};
use crate::daemon::monitor::Presence;
use crate::flush::kept_versions;
use crate::index::NotPlain;

use super::errors::control_error;

/// The most local files that are named.
const NAMED: usize = 20;

impl Service {
    /// Says what would be removed, and what is in the way.
    pub(super) fn plan_to_leave(&self) -> Result<LeavePlan, ControlError> {
        self.refuse_on_read_only("flush, which must be done first")?;
        let backend = self.drive.get();
        let backend = backend.filter(|_| self.monitor.presence() == Presence::Attached);
        let backend = backend.ok_or_else(|| self.absent())?;
        let of_index = |error: crate::index::IndexError| {
            ControlError::new(ErrorCode::Failed, error.to_string())
        };
        let of_drive = |error| control_error(&error);
        self.sort_local().map_err(of_index)?;
        self.index.commit().map_err(of_index)?;
        let snapshot = self.index.snapshot().map_err(of_index)?;
        let local = local_files(&snapshot).map_err(of_index)?;
        let (files, bytes) = kept_versions(&*backend).map_err(of_drive)?;
        let mut in_the_way = in_the_way(&*backend, self.flusher.is_running()).map_err(of_drive)?;
        in_the_way.extend(self.in_the_way_here());
        let waiting = self.waiting();
        Ok(LeavePlan {
            mountpoint: self.mountpoint.to_text(),
            drive: self.monitor.path().to_text(),
            cache: self.cache.to_text(),
            name: self.config_origin().map(|origin| origin.name),
            waiting: waiting.names + waiting.inodes,
            local: amount(&local),
            local_files: (local.iter().filter(|file| !file.is_dir()))
                .take(NAMED)
                .map(|file| file.path.as_os_str().to_text())
                .collect(),
            versions: Amount { files, bytes },
            lost: self.lost(&snapshot.not_plain().map_err(of_index)?),
            in_the_way,
        })
    }

    /// What is in the way on this computer.
    fn in_the_way_here(&self) -> Vec<String> {
        let mut lines = self.fs.troubles();
        if let Ok((count @ 1.., path)) = self.store.lost_and_found() {
            lines.push(lost_line(count as u64, path));
        }
        let open = self.fs.writing_count();
        if open > 0 {
            lines.push(format!("files are open for writing: {open}; close them"));
        }
        let held = self.index.lock().held_count();
        if held > 0 {
            lines.push(format!(
                "{held} files were moved to names that stay local, and their bytes are on the \
                 drive only: wait until they are here, or move them back"
            ));
        }
        lines
    }

    /// What the plain tree of the drive does not show, a line each.
    fn lost(&self, not_plain: &NotPlain) -> Vec<String> {
        let can = &self.fs.capabilities;
        let mut lines = Vec::new();
        let mut add = |count: u64, what: &str| {
            if count > 0 {
                lines.push(format!("{what}: {count}"));
            }
        };
        if !can.symlinks {
            add(
                not_plain.symlinks,
                "symbolic links, which the drive cannot hold",
            );
        }
        if !can.special_files {
            add(
                not_plain.special,
                "pipes, sockets and devices, which the drive cannot hold",
            );
        }
        add(
            not_plain.described,
            "names with permissions, owners, attributes or exact times that only .ferryfs knows",
        );
        if !can.hard_links {
            add(
                not_plain.linked,
                "names of files with several names, each of which stays as a copy",
            );
        }
        add(
            not_plain.respelled,
            "names that the drive spells otherwise, and that keep that spelling",
        );
        for (name, stored) in &not_plain.spellings {
            let (name, stored) = (name.as_os_str().escaped(), stored.as_os_str().escaped());
            lines.push(format!("  {name} is {stored} there"));
        }
        lines
    }
}
