//! The log, and where spans of traced requests go: to a collector if one is named, else to the log.

use std::io::IsTerminal;

use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::fmt::format::FmtSpan;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt};

use super::{Global, Usage};
use crate::trace::TARGET;

/// What `service.name` says in every span.
const SERVICE: &str = "statehouse";

/// Sends what is left when it is dropped.
#[must_use]
pub struct Export(Option<SdkTracerProvider>);

impl Drop for Export {
    fn drop(&mut self) {
        if let Some(provider) = &self.0
            && let Err(error) = provider.shutdown()
        {
            tracing::warn!(%error, "the last spans did not reach the collector");
        }
    }
}

/// A collector that speaks OTLP over gRPC, and what this node is called there.
pub struct Collector<'a> {
    pub address: &'a str,
    pub node: &'a str,
}

/// Starts the log. `default` is its filter unless the user gave one.
pub fn start(global: &Global, default: &str, collector: Option<Collector>) -> anyhow::Result<Export> {
    let filter = global.log.as_deref().unwrap_or(default);
    let filter = EnvFilter::try_new(filter).map_err(|e| {
        Usage(format!("--log {filter:?} is no filter ({e}): try `info` or `statehouse=debug`"))
    })?;
    let provider = collector.map(provider).transpose()?;
    // A line that cannot be written is dropped. The library would complain on standard error, and panic when
    // that is what is closed: in a node, on the thread that applies commands.
    let lines = fmt::layer().log_internal_errors(false).with_writer(std::io::stderr);
    // Spans that nobody collects are told as lines when they end.
    let spans = if provider.is_some() { FmtSpan::NONE } else { FmtSpan::CLOSE };
    let lines = lines.with_span_events(spans);
    let lines = match global.json {
        true => lines.json().boxed(),
        false => lines.with_ansi(std::io::stderr().is_terminal()).with_target(false).boxed(),
    };
    let export = provider.as_ref().map(|provider| {
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer(SERVICE));
        layer.with_filter(filter_fn(|metadata| metadata.target() == TARGET))
    });
    let log = tracing_subscriber::registry().with(lines.with_filter(filter)).with(export);
    log.try_init().map_err(|e| anyhow::anyhow!("the log cannot be started: {e}"))?;
    Ok(Export(provider))
}

fn provider(collector: Collector) -> anyhow::Result<SdkTracerProvider> {
    let endpoint = format!("http://{}", collector.address);
    let exporter = SpanExporter::builder().with_tonic().with_endpoint(endpoint).build().map_err(|error| {
        anyhow::anyhow!("cannot send spans to the collector at {}: {error}", collector.address)
    })?;
    let instance = KeyValue::new("service.instance.id", collector.node.to_owned());
    let resource = Resource::builder().with_service_name(SERVICE).with_attribute(instance).build();
    Ok(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build())
}
