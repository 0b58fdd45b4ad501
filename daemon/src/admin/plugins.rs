//! The plugins at work: `GET /admin/v1/plugins`, and `POST /admin/v1/plugins/reload`, which loads them anew.

use std::path::PathBuf;
use std::time::Duration;

use http::{Response, StatusCode};
use offpeak_host::PluginReport;
use serde::Serialize;

use super::List;
use crate::body::ReplyBody;
use crate::gateway::Gateway;
use crate::plugins::Reloaded;
use crate::reply::{Refusal, json_of};

#[derive(Serialize)]
pub(super) struct Row {
    name: String,
    /// The world that it implements.
    role: &'static str,
    /// The backend, if it is a provider's plugin.
    used_by: Option<String>,
    /// `bundled`, or a file's path.
    source: String,
    sha256: String,
    calls: u64,
    errors: u64,
    traps: u64,
    timeouts: u64,
    out_of_use: bool,
    /// Microseconds.
    call_us: CallTimes,
    instances: u32,
    /// The most that one instance has had.
    instance_memory_bytes: usize,
}

#[derive(Serialize)]
struct CallTimes {
    total: f64,
    p50: f64,
    p99: f64,
    max: f64,
}

/// Every plugin, in the order in which they are asked about a request.
pub(super) fn list(gateway: &Gateway) -> List<Row> {
    let reports = gateway.plugin_reports().into_iter();
    List { data: reports.map(|(report, used_by)| row(report, used_by.map(|id| id.to_string()))).collect() }
}

fn row(plugin: PluginReport, used_by: Option<String>) -> Row {
    let PluginReport { name, world, file, sha256, health, times, instances, memory_bytes } = plugin;
    Row {
        name,
        role: world,
        used_by,
        source: source(file),
        sha256,
        calls: health.calls,
        errors: health.errors,
        traps: health.traps,
        timeouts: health.timeouts,
        out_of_use: health.out_of_use,
        call_us: CallTimes {
            total: micros(times.total),
            p50: micros(times.p50),
            p99: micros(times.p99),
            max: micros(times.max),
        },
        instances,
        instance_memory_bytes: memory_bytes,
    }
}

#[derive(Serialize)]
struct ReloadRow {
    name: String,
    role: &'static str,
    used_by: Option<String>,
    source: String,
    /// SHA-256 of what was at work, and of what is.
    before: String,
    sha256: String,
    /// It is another component, or has other settings or limits.
    changed: bool,
}

#[derive(Serialize)]
struct ReloadAnswer {
    data: Vec<ReloadRow>,
    /// Why the configuration that was read again last (on SIGHUP) was not taken in.
    #[serde(skip_serializing_if = "Option::is_none")]
    configuration_refused: Option<String>,
}

/// Reads the files of all plugins again. All of them are taken into use, or none.
pub(super) async fn reload(gateway: &Gateway) -> Result<Response<ReplyBody>, Refusal> {
    let reloaded = gateway.reload_plugins(None).await.map_err(|error| {
        let message = format!("{error}. Nothing has changed: the plugins that were at work go on.");
        Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, "plugin_refused", message)
    })?;
    let row = |told: Reloaded| ReloadRow {
        name: told.plugin.name,
        role: told.plugin.world,
        used_by: told.used_by.map(|backend| backend.to_string()),
        source: source(told.plugin.file),
        before: told.before,
        sha256: told.plugin.sha256,
        changed: told.changed,
    };
    let configuration_refused = gateway.refused_configuration.lock().clone();
    let answer = ReloadAnswer { data: reloaded.into_iter().map(row).collect(), configuration_refused };
    Ok(json_of(StatusCode::OK, &answer))
}

fn source(file: Option<PathBuf>) -> String {
    file.map_or_else(|| "bundled".to_owned(), |file| file.display().to_string())
}

/// To a tenth: what a warm call takes is around one.
fn micros(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e7).round() / 10.0
}
