//! `statehouse module check`: the determinism certificate of a component.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use serde_json::{Value, json};

use super::super::{Global, Shown, Usage, output, payload};
use super::run::{compiler, read_file};
use crate::trial::Inspected;
use crate::trial::check::{Certificate, Comparison, Deed, Spread, Tally, certify, generate};
use crate::wasm::survey;
use crate::wasm::validate::Rejected;

/// Commands that are made up if there are none.
const COUNT_DEFAULT: usize = 1_000;

/// Commands of one check, at most: what they do is kept in memory.
const COUNT_MAX: u64 = 100_000;

/// Check that a component is a deterministic machine: what it imports and uses, and whether the same commands
/// come to the same in one batch or many, from snapshots, beside failures, on another replica, in other code
#[derive(Debug, Args)]
#[command(
    after_help = "Ends with 1 if there is a difference, which is told at the first input that has one, with \
        both sides; and if no node would take the component, with all that is refused and what to do.\n\nA \
        file of commands has one a line, as text. A line that is one of these objects is what it says:\n  \
        {\"text\": \"...\"}  {\"hex\": \"00ff\"}  {\"advance_ms\": 10000}  {\"grant_ms\": 10000, \"id\": 7}  \
        {\"revoke\": 7}  {\"query\": \"...\"}  {\"query_hex\": \"00ff\"}\nWith --count, commands are made by \
        changing those of the file; without a file, of words that the component has in\nits data. The \
        summary tells how many were accepted: a certificate over refusals says little.\n\nExamples:\n  \
        statehouse module check notes.component.wasm --commands examples.txt --count 5000\n  statehouse \
        module check notes.component.wasm --commands exactly-these.txt\n  statehouse module check \
        counter.component.wasm --seed 7 --count 2000 --json"
)]
pub struct Check {
    /// The component, or a core module that carries component metadata
    file: PathBuf,
    /// The configuration that the machine is created with
    #[arg(long, visible_alias = "init", value_name = "TEXT|@FILE", allow_negative_numbers = true)]
    argument: Option<String>,
    /// Commands to run, one a line
    #[arg(long, value_name = "FILE")]
    commands: Option<PathBuf>,
    /// Decides what is made up, how large batches are, where snapshots are taken and what fails
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// How many commands to make up [default: 1000, or none if there is a file]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=COUNT_MAX))]
    count: Option<u64>,
}

/// What was run.
struct Inputs {
    deeds: Vec<Deed>,
    examples: usize,
    made: usize,
    words: usize,
    seed: u64,
}

impl Check {
    pub fn run(self, global: &Global) -> anyhow::Result<()> {
        let configuration = payload::read(self.argument.as_deref().unwrap_or_default(), false)?;
        let compiler = compiler()?;
        let (inspected, rejected) = Inspected::look(&read_file(&self.file)?, &compiler)?;
        if !rejected.is_empty() {
            return refuse(global, &inspected, &rejected);
        }
        let inputs = self.inputs(&inspected)?;
        let waiting = super::waiting("compiling it twice, and running the commands")?;
        let certificate = certify(&inspected, &compiler, configuration, &inputs.deeds, self.seed);
        waiting.finish_and_clear();
        let certificate = certificate?;
        if global.json {
            let told = component_json(&inspected, &[])?;
            output::json(&certificate_json(told, &inputs, &certificate))?;
        } else {
            show_component(&inspected, &[])?;
            show_certificate(&inputs, &certificate)?;
        }
        if certificate.holds() { Ok(()) } else { Err(Shown.into()) }
    }

    fn inputs(&self, inspected: &Inspected) -> anyhow::Result<Inputs> {
        let examples = match &self.commands {
            None => Vec::new(),
            Some(file) => Deed::read_all(&read_file(file)?)
                .map_err(Usage)
                .with_context(|| format!("the commands in {}", file.display()))?,
        };
        if self.commands.is_some() && examples.is_empty() {
            return Err(Usage("the file of commands has none".into()).into());
        }
        let made = match (self.count, &self.commands) {
            (Some(count), _) => usize::try_from(count)?,
            (None, Some(_)) => 0,
            (None, None) => COUNT_DEFAULT,
        };
        let words = if made > 0 { survey::words(&inspected.component) } else { Vec::new() };
        let deeds = generate(&examples, &words, self.seed, made);
        Ok(Inputs { deeds, examples: examples.len(), made, words: words.len(), seed: self.seed })
    }
}

/// Shows a component that no node takes, and everything for which it is refused. Nothing of it is run.
fn refuse(global: &Global, inspected: &Inspected, rejected: &[Rejected]) -> anyhow::Result<()> {
    if global.json {
        let mut told = component_json(inspected, rejected)?;
        told["deterministic"] = Value::Null;
        output::json(&told)?;
        return Err(Shown.into());
    }
    show_component(inspected, rejected)?;
    for why in rejected {
        output::line(format_args!("REFUSED   {}", output::printable(why.to_string().as_bytes())))?;
    }
    output::line("NOT a machine: no node takes it, and nothing of it was run")?;
    Err(Shown.into())
}

/// Whether the import is one of those that are refused.
fn is_refused(import: &str, rejected: &[Rejected]) -> bool {
    let of_import = |why: &&Rejected| matches!(why, Rejected::Import { .. } | Rejected::Type { .. });
    rejected.iter().filter(of_import).any(|why| why.name() == Some(import))
}

/// The features that it uses; nothing of what is over a bound, where to look for them could take minutes.
fn features(inspected: &Inspected, rejected: &[Rejected]) -> anyhow::Result<Option<Vec<String>>> {
    if rejected.iter().any(|why| matches!(why, Rejected::OverBound { .. })) {
        return Ok(None);
    }
    Ok(Some(survey::features(&inspected.component)?))
}

/// What is worth a warning, though it is no difference.
fn warnings(tally: &Tally) -> Vec<String> {
    let mut warnings = Vec::new();
    if tally.commands_accepted == 0 {
        warnings.push(
            "not one command was accepted, so this certificate says nothing about those that are: give \
             examples with --commands"
                .to_owned(),
        );
    } else if tally.accepted * 10 < tally.inputs {
        warnings.push(format!(
            "only {} of {} inputs were accepted: give more examples with --commands",
            tally.accepted, tally.inputs
        ));
    }
    warnings
}

fn show_component(inspected: &Inspected, rejected: &[Rejected]) -> anyhow::Result<()> {
    output::line(format_args!("digest    {}", inspected.digest))?;
    output::line(format_args!("bytes     {}", inspected.component.len()))?;
    output::line(format_args!("world     {}", inspected.world.name()))?;
    for import in &inspected.imports {
        let name = output::printable(import.as_bytes());
        match survey::given(import) {
            _ if is_refused(import, rejected) => output::line(format_args!("import    {name}: refused"))?,
            Some(given) => output::line(format_args!("import    {name}: {given}"))?,
            None => output::line(format_args!("import    {name}"))?,
        }
    }
    for export in &inspected.exports {
        output::line(format_args!("export    {}", output::printable(export.as_bytes())))?;
    }
    if let Some(features) = features(inspected, rejected)? {
        output::line(format_args!("features  {}", features.join(", ")))?;
    }
    Ok(())
}

fn show_certificate(inputs: &Inputs, certificate: &Certificate) -> anyhow::Result<()> {
    let Inputs { examples, made, words, seed, .. } = inputs;
    let from = format!("{made} made up from seed {seed}, with {words} words of the component");
    output::line(format_args!("lines     {examples} given, {from}"))?;
    let Tally { inputs, accepted, refused, trapped, exhausted, lease_ends, events, .. } = certificate.tally;
    output::line(format_args!(
        "inputs    {inputs}: {accepted} accepted, {refused} refused, {trapped} trapped, {exhausted} out of \
         budget; {lease_ends} ends of leases, {events} events"
    ))?;
    let Tally { queries, queries_answered, .. } = certificate.tally;
    output::line(format_args!("queries   {queries}: {queries_answered} answered, each asked twice"))?;
    if let Some(trap) = &certificate.first_trap {
        output::line(format_args!("trapped   {trap}"))?;
    }
    let cost = &certificate.cost;
    for (name, spread, unit) in
        [("fuel", cost.fuel, ""), ("time", cost.took_ns, " ns"), ("memory", cost.memory_bytes, " bytes")]
    {
        let (median, worst) = (spread.median, spread.worst);
        output::line(format_args!("{name:<9} {median}{unit} an input, at worst {worst}{unit}"))?;
    }
    for comparison in &certificate.comparisons {
        show_comparison(comparison)?;
    }
    for warning in warnings(&certificate.tally) {
        output::tell(format_args!("warning: {warning}"));
    }
    output::line(match certificate.holds() {
        true => "deterministic: no difference was found",
        false => "NOT deterministic",
    })?;
    Ok(())
}

fn show_comparison(comparison: &Comparison) -> anyhow::Result<()> {
    let Comparison { run, with, about, difference, hint } = comparison;
    let Some(difference) = difference else {
        let beside = with.map(|with| format!(", the same as {with}")).unwrap_or_default();
        return Ok(output::line(format_args!("ok        {run}{beside} ({about})"))?);
    };
    let with = with.unwrap_or("as it should be");
    let width = run.len().max(with.len());
    output::line(format_args!("DIFFERS   {run} ({about})"))?;
    let place = if difference.is_query { "after" } else { "at" };
    output::line(format_args!(
        "          {place} input {}, {}: {}",
        difference.number, difference.input, difference.what
    ))?;
    output::line(format_args!("            {with:width$}  {}", difference.expected))?;
    output::line(format_args!("            {run:width$}  {}", difference.found))?;
    Ok(output::line(format_args!("          {hint}"))?)
}

/// What it is, and everything for which it is refused.
fn component_json(inspected: &Inspected, rejected: &[Rejected]) -> anyhow::Result<Value> {
    let import = |name: &String| {
        let refused = is_refused(name, rejected);
        let gets = survey::given(name).filter(|_| !refused);
        json!({ "name": name, "gets": gets, "refused": refused })
    };
    let imports: Vec<Value> = inspected.imports.iter().map(import).collect();
    let refused = |why: &Rejected| json!({ "name": why.name(), "why": why.to_string() });
    let refused: Vec<Value> = rejected.iter().map(refused).collect();
    Ok(json!({
        "digest": inspected.digest.to_string(),
        "bytes": inspected.component.len(),
        "world": inspected.world.name(),
        "imports": imports,
        "exports": inspected.exports,
        "features": features(inspected, rejected)?,
        "refused": refused,
    }))
}

/// Adds what it did.
fn certificate_json(mut told: Value, inputs: &Inputs, certificate: &Certificate) -> Value {
    let tally = &certificate.tally;
    let spread = |spread: Spread| json!({ "median": spread.median, "worst": spread.worst });
    told["lines"] = json!({ "given": inputs.examples, "made": inputs.made, "seed": inputs.seed });
    told["inputs"] = json!({
        "all": tally.inputs,
        "accepted": tally.accepted,
        "refused": tally.refused,
        "trapped": tally.trapped,
        "exhausted": tally.exhausted,
        "lease_ends": tally.lease_ends,
        "commands_accepted": tally.commands_accepted,
        "events": tally.events,
    });
    told["queries"] = json!({ "all": tally.queries, "answered": tally.queries_answered });
    told["cost"] = json!({
        "fuel": spread(certificate.cost.fuel),
        "time_ns": spread(certificate.cost.took_ns),
        "memory_bytes": spread(certificate.cost.memory_bytes),
    });
    told["first_trap"] = json!(certificate.first_trap);
    told["comparisons"] = certificate.comparisons.iter().map(comparison_json).collect();
    told["warnings"] = json!(warnings(tally));
    told["deterministic"] = json!(certificate.holds());
    told
}

fn comparison_json(comparison: &Comparison) -> Value {
    let difference = comparison.difference.as_ref().map(|difference| {
        json!({
            "input": difference.number,
            "command": difference.input,
            "is_query": difference.is_query,
            "what": difference.what,
            "expected": difference.expected,
            "found": difference.found,
            "hint": comparison.hint,
        })
    });
    json!({
        "run": comparison.run,
        "with": comparison.with,
        "about": comparison.about,
        "difference": difference,
    })
}
