//! Transactions of the default machine, written as JSON.

use clap::Args;
use serde::Deserialize;
use serde_json::{Value, json};
use statehouse_kv::messages::{
    Compare, CompareResult, CompareTarget, DeleteRangeRequest, PutRequest, RangeRequest, Request, RequestOp,
    Response, ResponseOp, TargetUnion, TxnRequest, TxnResponse,
};

use super::{pair_json, range_json, revision_of, span};
use crate::cli::{Usage, duration, payload};

pub const HELP: &str = "\
The transaction is JSON. If all of `compare` hold, `success` is done, else `failure`:
  {
    \"compare\": [{\"key\": \"colour\", \"target\": \"value\", \"is\": \"=\", \"value\": \"green\"}],
    \"success\": [{\"put\": {\"key\": \"colour\", \"value\": \"blue\"}},
                {\"delete\": {\"key\": \"old/\", \"prefix\": true}}],
    \"failure\": [{\"get\": {\"key\": \"colour\"}}]
  }
A target is value, version, create_revision, mod_revision or lease; `is` is one of = != < >.
A step is a put, get, delete or txn. A put may have a \"ttl\" (\"30s\") or a \"lease\" (a number).
A key that is not there has the version 0.
Bytes that are not text are written {\"hex\": \"00ff\"}.

Examples:
  statehouse kv txn @transfer.json
  statehouse kv txn '{\"success\": [{\"put\": {\"key\": \"a\", \"value\": \"1\"}},
                               {\"put\": {\"key\": \"b\", \"value\": \"2\"}}]}'";

#[derive(Debug, Args)]
pub struct Txn {
    /// The transaction
    #[arg(value_name = "@FILE|JSON|-")]
    transaction: String,
}

impl Txn {
    pub fn request(&self) -> anyhow::Result<TxnRequest> {
        parse(&payload::read(&self.transaction, false)?)
    }
}

fn parse(text: &[u8]) -> anyhow::Result<TxnRequest> {
    let told = |e: serde_json::Error| Usage(format!("the transaction is not understood: {e}"));
    let value: serde_json::Value = serde_json::from_slice(text).map_err(told)?;
    // serde would take a list for the object's fields in their order.
    if !value.is_object() {
        return Err(
            Usage("the transaction is not a JSON object; see `statehouse kv txn --help`".into()).into()
        );
    }
    let transaction: Transaction = serde_json::from_value(value).map_err(told)?;
    transaction.message()
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Transaction {
    #[serde(default)]
    compare: Vec<Condition>,
    #[serde(default)]
    success: Vec<Step>,
    #[serde(default)]
    failure: Vec<Step>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Condition {
    key: Blob,
    #[serde(default)]
    prefix: bool,
    target: Target,
    is: Relation,
    value: Operand,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Target {
    Value,
    Version,
    CreateRevision,
    ModRevision,
    Lease,
}

#[derive(Clone, Copy, Debug, Deserialize)]
enum Relation {
    #[serde(rename = "=")]
    Equal,
    #[serde(rename = "!=")]
    NotEqual,
    #[serde(rename = "<")]
    Less,
    #[serde(rename = ">")]
    Greater,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Operand {
    Number(i64),
    Bytes(Blob),
}

/// Text, or hexadecimal digits.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Blob {
    Text(String),
    Hex { hex: String },
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Step {
    Put(Put),
    Get(Range),
    Delete(Range),
    Txn(Transaction),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Put {
    key: Blob,
    value: Blob,
    #[serde(default)]
    lease: i64,
    #[serde(default)]
    ttl: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Range {
    key: Blob,
    #[serde(default)]
    prefix: bool,
}

impl Blob {
    fn bytes(self) -> anyhow::Result<Vec<u8>> {
        match self {
            Blob::Text(text) => Ok(text.into_bytes()),
            Blob::Hex { hex } => {
                hex::decode(&hex).map_err(|e| Usage(format!("{hex:?} is not hexadecimal: {e}")).into())
            }
        }
    }
}

impl Transaction {
    fn message(self) -> anyhow::Result<TxnRequest> {
        let steps = |steps: Vec<Step>| steps.into_iter().map(Step::message).collect::<anyhow::Result<_>>();
        Ok(TxnRequest {
            compare: self.compare.into_iter().map(Condition::message).collect::<anyhow::Result<_>>()?,
            success: steps(self.success)?,
            failure: steps(self.failure)?,
        })
    }
}

impl Condition {
    fn message(self) -> anyhow::Result<Compare> {
        let (target, operand) = match (self.target, self.value) {
            (Target::Value, Operand::Bytes(value)) => {
                (CompareTarget::Value, TargetUnion::Value(value.bytes()?))
            }
            (Target::Version, Operand::Number(n)) => (CompareTarget::Version, TargetUnion::Version(n)),
            (Target::CreateRevision, Operand::Number(n)) => {
                (CompareTarget::Create, TargetUnion::CreateRevision(n))
            }
            (Target::ModRevision, Operand::Number(n)) => (CompareTarget::Mod, TargetUnion::ModRevision(n)),
            (Target::Lease, Operand::Number(n)) => (CompareTarget::Lease, TargetUnion::Lease(n)),
            (Target::Value, Operand::Number(n)) => {
                return Err(Usage(format!("a value is compared with text, not with the number {n}")).into());
            }
            (target, Operand::Bytes(_)) => {
                return Err(Usage(format!("{target:?} is compared with a number, not with text")).into());
            }
        };
        let result = match self.is {
            Relation::Equal => CompareResult::Equal,
            Relation::NotEqual => CompareResult::NotEqual,
            Relation::Less => CompareResult::Less,
            Relation::Greater => CompareResult::Greater,
        };
        let (key, range_end) = span(self.key.bytes()?, self.prefix);
        Ok(Compare {
            result: result.into(),
            target: target.into(),
            key,
            target_union: Some(operand),
            range_end,
        })
    }
}

impl Step {
    fn message(self) -> anyhow::Result<RequestOp> {
        let request = match self {
            Step::Put(Put { key, value, lease, ttl }) => Request::RequestPut(PutRequest {
                key: key.bytes()?,
                value: value.bytes()?,
                lease,
                ttl_ms: ttl.as_deref().map(duration::ttl_ms).transpose().map_err(Usage)?,
                ..PutRequest::default()
            }),
            Step::Get(Range { key, prefix }) => {
                let (key, range_end) = span(key.bytes()?, prefix);
                Request::RequestRange(RangeRequest { key, range_end, ..RangeRequest::default() })
            }
            Step::Delete(Range { key, prefix }) => {
                let (key, range_end) = span(key.bytes()?, prefix);
                Request::RequestDeleteRange(DeleteRangeRequest { key, range_end, prev_kv: false })
            }
            Step::Txn(transaction) => Request::RequestTxn(transaction.message()?),
        };
        Ok(RequestOp { request: Some(request) })
    }
}

/// What was done.
pub fn answer_json(answer: &TxnResponse) -> Value {
    json!({
        "revision": revision_of(answer.header.as_ref()),
        "succeeded": answer.succeeded,
        "responses": answer.responses.iter().map(step_json).collect::<Vec<_>>(),
    })
}

fn step_json(step: &ResponseOp) -> Value {
    match &step.response {
        Some(Response::ResponseRange(found)) => json!({ "get": range_json(found) }),
        Some(Response::ResponsePut(put)) => {
            json!({ "put": { "prev_kv": put.prev_kv.as_ref().map(pair_json) } })
        }
        Some(Response::ResponseDeleteRange(gone)) => json!({ "delete": { "deleted": gone.deleted } }),
        Some(Response::ResponseTxn(answer)) => json!({ "txn": answer_json(answer) }),
        None => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_of_the_help_are_understood() {
        let example = &HELP[HELP.find('{').unwrap()..HELP.find("A target").unwrap()];
        let transaction = parse(example.as_bytes()).unwrap();
        assert_eq!(transaction.compare.len(), 1);
        assert_eq!(transaction.compare[0].target_union, Some(TargetUnion::Value(b"green".to_vec())));
        assert_eq!((transaction.success.len(), transaction.failure.len()), (2, 1));
        let Some(Request::RequestDeleteRange(delete)) = &transaction.success[1].request else {
            panic!("the second step deletes");
        };
        assert_eq!(delete.range_end, b"old0");
        let last = &HELP[HELP.rfind("txn '").unwrap() + 5..HELP.len() - 1];
        assert_eq!(parse(last.as_bytes()).unwrap().success.len(), 2);
    }

    #[test]
    fn nested_transactions_and_bytes_are_understood() {
        let text = r#"{"success": [{"txn": {"failure": [{"put": {"key": {"hex": "00ff"}, "value": ""}}]}}]}"#;
        let transaction = parse(text.as_bytes()).unwrap();
        let Some(Request::RequestTxn(inner)) = &transaction.success[0].request else {
            panic!("a transaction within");
        };
        let Some(Request::RequestPut(put)) = &inner.failure[0].request else { panic!("a put") };
        assert_eq!(put.key, [0, 255]);
    }

    #[test]
    fn mistakes_are_usage_errors() {
        for bad in [
            "",
            "[]",
            r#"{"sucess": []}"#,
            r#"{"success": [{"drop": {"key": "a"}}]}"#,
            r#"{"success": [{"put": {"key": "a", "value": "b", "prefix": true}}]}"#,
            r#"{"compare": [{"key": "a", "target": "value", "is": "=", "value": 4}]}"#,
            r#"{"compare": [{"key": "a", "target": "version", "is": "=", "value": "4"}]}"#,
            r#"{"compare": [{"key": "a", "target": "version", "is": "==", "value": 4}]}"#,
            r#"{"success": [{"get": {"key": {"hex": "0"}}}]}"#,
            r#"{"success": [{"put": {"key": "a", "value": "b", "ttl": "0s"}}]}"#,
            r#"{"success": [{"put": {"key": "a", "value": "b", "ttl": 30}}]}"#,
        ] {
            let error = parse(bad.as_bytes()).err().unwrap_or_else(|| panic!("{bad} is understood"));
            assert!(error.downcast_ref::<Usage>().is_some(), "{bad}: {error}");
        }
    }
}
