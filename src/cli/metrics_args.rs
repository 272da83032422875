//! The options of a mount that say where its metrics go.

use std::path::PathBuf;

use super::mount::absolute;
use crate::core::Failure;
use crate::daemon::metrics::{Address, MetricsOptions};

/// Where metrics go.
#[derive(Debug, Default, clap::Args)]
pub(super) struct MetricsArgs {
    /// Write metrics in the text format of Prometheus to this file: after each flush and every 15
    /// seconds. It is replaced at once, and removed when the mount ends
    #[arg(long, value_name = "FILE")]
    metrics: Option<PathBuf>,
    /// Answer GET /metrics at 127.0.0.1:PORT, or at unix:PATH. Other addresses than those of this
    /// machine are refused; all users of this machine can read a port
    #[arg(long, value_name = "ADDRESS")]
    metrics_listen: Option<Address>,
}

impl MetricsArgs {
    pub(super) fn into_options(self) -> Result<MetricsOptions, Failure> {
        let file = self.metrics.as_deref();
        Ok(MetricsOptions {
            file: file
                .map(|path| absolute("metrics file", path))
                .transpose()?,
            listen: self.metrics_listen,
        })
    }
}
