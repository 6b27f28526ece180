//! Shows why a replica halted: what `statehouse machine explain` prints.

use serde_json::{Value, json};

use super::machine::Names;
use super::{Global, output};
use crate::node::request::{Difference, Explanation, OperationInfo, Side};

/// Shows an explanation.
pub fn show(global: &Global, explanation: &Explanation, names: &Names) -> anyhow::Result<()> {
    if global.json {
        output::json(&explanation_json(explanation, names))?;
        return Ok(());
    }
    output::line(format_args!("halted    {}", output::printable(explanation.why.as_bytes())))?;
    if let Some(node) = explanation.with() {
        output::line(format_args!("compared  with the leader, on {}", names.name(node)))?;
    }
    let agreed = explanation.agreed_index().map_or("not known".into(), |index| index.to_string());
    output::line(format_args!("agreed    up to index: {agreed}"))?;
    if let Some(index) = explanation.differed_index() {
        output::line(format_args!("differs   from index: {index}"))?;
    }
    if !explanation.operations.is_empty() {
        output::line(format_args!("batch     {}", batch(&explanation.operations)))?;
    }
    if !explanation.unknown.is_empty() {
        output::line(format_args!("unknown   {}", output::printable(explanation.unknown.as_bytes())))?;
    }
    if !explanation.differences.is_empty() {
        let row = |difference: &Difference| {
            let (here, leader) = (side(&difference.here), side(&difference.leader));
            vec![difference.what.clone(), place(difference, &explanation.operations), here, leader]
        };
        let rows: Vec<Vec<String>> = explanation.differences.iter().map(row).collect();
        output::table(&["WHAT DIFFERS", "WHERE", "HERE", "LEADER"], &rows)?;
    }
    if explanation.more > 0 {
        output::line(format_args!("and {} more", explanation.more))?;
    }
    Ok(())
}

/// A batch's operations in a few words.
fn batch(operations: &[OperationInfo]) -> String {
    match operations {
        [only] => format!("one operation: {}", operation(only)),
        [first, ..] => format!("{} operations, the first: {}", operations.len(), operation(first)),
        [] => String::new(),
    }
}

fn operation(of: &OperationInfo) -> String {
    format!("{} of {} bytes", of.kind, of.bytes)
}

/// The key, or the operation whose outcome it is.
fn place(difference: &Difference, operations: &[OperationInfo]) -> String {
    match (&difference.key, difference.offset) {
        (Some(key), _) => output::printable(key),
        (None, Some(offset)) => match operations.get(offset as usize) {
            Some(of) => format!("operation {offset}: {}", operation(of)),
            None => format!("operation {offset}"),
        },
        (None, None) => String::new(),
    }
}

fn side(side: &Side) -> String {
    let bytes = side.bytes.map(|bytes| format!("{bytes} bytes, {:016x}", side.digest));
    match (side.number, bytes) {
        (Some(number), Some(bytes)) => format!("{number}: {bytes}"),
        (Some(number), None) => number.to_string(),
        (None, Some(bytes)) => bytes,
        (None, None) if side.deleted => "deleted".into(),
        (None, None) => "not written".into(),
    }
}

fn explanation_json(explanation: &Explanation, names: &Names) -> Value {
    let side = |side: &Side| {
        json!({
            "number": side.number,
            "bytes": side.bytes,
            "digest": side.bytes.map(|_| format!("{:016x}", side.digest)),
            "deleted": side.deleted,
        })
    };
    let difference = |difference: &Difference| {
        json!({
            "what": difference.what,
            "key": difference.key.as_ref().map(|key| output::printable(key)),
            "key_hex": difference.key.as_ref().map(hex::encode),
            "operation": difference.offset,
            "here": side(&difference.here),
            "leader": side(&difference.leader),
        })
    };
    let operation = |of: &OperationInfo| json!({ "kind": of.kind, "bytes": of.bytes });
    json!({
        "why": explanation.why,
        "compared_with": explanation.with().map(|node| node.to_string()),
        "compared_with_name": explanation.with().map(|node| names.name(node)),
        "agreed_index": explanation.agreed_index().map(|index| index.0),
        "differed_index": explanation.differed_index().map(|index| index.0),
        "differences": explanation.differences.iter().map(difference).collect::<Vec<_>>(),
        "more": explanation.more,
        "operations": explanation.operations.iter().map(operation).collect::<Vec<_>>(),
        "unknown": explanation.unknown,
    })
}
