//! What a backend over another one passes on as it is.

/// The calls of [`Backend`] in which a backend over `self.inner` has no say, passed on as they are. A call that the trait answers by itself
/// is among them, as that answer would hide the one of `self.inner`.
macro_rules! pass_on_looks {
    () => {
        fn read_dir(
            &self,
            dir: &$crate::base::RelPath,
        ) -> $crate::backend::Result<Vec<$crate::backend::Entry>> {
            self.inner.read_dir(dir)
        }

        fn metadata(
            &self,
            path: &$crate::base::RelPath,
        ) -> $crate::backend::Result<$crate::backend::Metadata> {
            self.inner.metadata(path)
        }

        fn open_judged(
            &self,
            path: &$crate::base::RelPath,
        ) -> $crate::backend::Result<(
            Box<dyn $crate::backend::ReadFile>,
            $crate::rules::trust::Trust,
        )> {
            self.inner.open_judged(path)
        }

        fn trust(
            &self,
            path: &$crate::base::RelPath,
        ) -> $crate::backend::Result<$crate::rules::trust::Trust> {
            self.inner.trust(path)
        }

        fn check_changeable(&self, dir: &$crate::base::RelPath) -> $crate::backend::Result<()> {
            self.inner.check_changeable(dir)
        }

        fn check_replaceable(&self, path: &$crate::base::RelPath) -> $crate::backend::Result<()> {
            self.inner.check_replaceable(path)
        }

        fn renames_atomically(&self) -> bool {
            self.inner.renames_atomically()
        }

        fn sync(&self) -> $crate::backend::Result<()> {
            self.inner.sync()
        }

        fn space(&self) -> $crate::backend::Result<$crate::backend::Space> {
            self.inner.space()
        }

        fn answers(&self) -> $crate::backend::Result<()> {
            self.inner.answers()
        }

        fn check_alive(&self, look: $crate::backend::Look) -> $crate::backend::Result<()> {
            self.inner.check_alive(look)
        }

        fn xattrs(
            &self,
            path: &$crate::base::RelPath,
        ) -> $crate::backend::Result<$crate::backend::Xattrs> {
            self.inner.xattrs(path)
        }

        fn xattrs_in(
            &self,
            dir: &$crate::base::RelPath,
            names: &[$crate::base::Name],
        ) -> $crate::backend::Result<Vec<($crate::base::Name, $crate::backend::Xattrs)>> {
            self.inner.xattrs_in(dir, names)
        }
    };
}
pub(crate) use pass_on_looks;
