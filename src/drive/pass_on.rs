//! The calls that a backend around another one passes on unchanged.

/// The calls of [`Backend`](crate::drive::Backend) that a backend over `self.inner` passes on
/// unchanged. This includes calls with a default implementation in the trait, which would hide that
/// of `self.inner`.
macro_rules! pass_on_looks {
    () => {
        fn read_dir(
            &self,
            dir: &$crate::core::RelPath,
        ) -> $crate::drive::Result<Vec<$crate::core::Entry>> {
            self.inner.read_dir(dir)
        }

        fn metadata(
            &self,
            path: &$crate::core::RelPath,
        ) -> $crate::drive::Result<$crate::core::Metadata> {
            self.inner.metadata(path)
        }

        fn names_in(
            &self,
            dir: &$crate::core::RelPath,
        ) -> $crate::drive::Result<Vec<$crate::core::Name>> {
            self.inner.names_in(dir)
        }

        fn metadata_now(
            &self,
            path: &$crate::core::RelPath,
        ) -> $crate::drive::Result<$crate::core::Metadata> {
            self.inner.metadata_now(path)
        }

        fn open_judged(
            &self,
            path: &$crate::core::RelPath,
        ) -> $crate::drive::Result<(Box<dyn $crate::drive::ReadFile>, $crate::plan::trust::Trust)> {
            self.inner.open_judged(path)
        }

        fn trust(
            &self,
            path: &$crate::core::RelPath,
        ) -> $crate::drive::Result<$crate::plan::trust::Trust> {
            self.inner.trust(path)
        }

        fn check_changeable(&self, dir: &$crate::core::RelPath) -> $crate::drive::Result<()> {
            self.inner.check_changeable(dir)
        }

        fn check_replaceable(&self, path: &$crate::core::RelPath) -> $crate::drive::Result<()> {
            self.inner.check_replaceable(path)
        }

        fn keep_open(&self) -> $crate::drive::KeptOpen {
            self.inner.keep_open()
        }

        fn renames_atomically(&self) -> bool {
            self.inner.renames_atomically()
        }

        fn links_may_be_copies(&self) -> bool {
            self.inner.links_may_be_copies()
        }

        fn remount(&self, access: $crate::drive::Access) -> $crate::drive::Result<bool> {
            self.inner.remount(access)
        }

        fn sync(&self) -> $crate::drive::Result<()> {
            self.inner.sync()
        }

        fn space(&self) -> $crate::drive::Result<$crate::core::Space> {
            self.inner.space()
        }

        fn answers(&self) -> $crate::drive::Result<()> {
            self.inner.answers()
        }

        fn check_alive(&self, look: $crate::drive::Look) -> $crate::drive::Result<()> {
            self.inner.check_alive(look)
        }

        fn xattrs(
            &self,
            path: &$crate::core::RelPath,
        ) -> $crate::drive::Result<$crate::core::Xattrs> {
            self.inner.xattrs(path)
        }

        fn xattrs_in(
            &self,
            dir: &$crate::core::RelPath,
            names: &[$crate::core::Name],
        ) -> $crate::drive::Result<Vec<($crate::core::Name, $crate::core::Xattrs)>> {
            self.inner.xattrs_in(dir, names)
        }
    };
}
pub(crate) use pass_on_looks;
