//! Why a replica halted, as messages, and back.

use super::v1;
use crate::error::Error;
use crate::id::{Index, NodeId};
use crate::node::request::{Difference, Explanation, OperationInfo, Side};

impl From<Explanation> for v1::ExplainMachineResponse {
    fn from(explanation: Explanation) -> v1::ExplainMachineResponse {
        let operation = |of: OperationInfo| v1::OperationInfo { kind: of.kind, bytes: of.bytes };
        v1::ExplainMachineResponse {
            compared_with: explanation.with().map(|node| node.0),
            agreed_index: explanation.agreed_index().map(|index| index.0),
            differed_index: explanation.differed_index().map(|index| index.0),
            why: explanation.why,
            differences: explanation.differences.into_iter().map(Into::into).collect(),
            more: explanation.more,
            operations: explanation.operations.into_iter().map(operation).collect(),
            unknown: explanation.unknown,
        }
    }
}

impl TryFrom<v1::ExplainMachineResponse> for Explanation {
    type Error = Error;

    fn try_from(message: v1::ExplainMachineResponse) -> Result<Explanation, Error> {
        let (agreed, differed) = (message.agreed_index.map(Index), message.differed_index.map(Index));
        let with = NodeId(message.compared_with.unwrap_or_default());
        let operation = |of: v1::OperationInfo| OperationInfo { kind: of.kind, bytes: of.bytes };
        let differences = message.differences.into_iter().map(TryInto::try_into);
        let mut explanation = Explanation::of(&message.why, with, agreed, differed);
        explanation.differences = differences.collect::<Result<_, Error>>()?;
        explanation.operations = message.operations.into_iter().map(operation).collect();
        (explanation.more, explanation.unknown) = (message.more, message.unknown);
        Ok(explanation)
    }
}

impl From<Difference> for v1::EffectDifference {
    fn from(difference: Difference) -> v1::EffectDifference {
        let Difference { what, key, offset, here, leader } = difference;
        v1::EffectDifference {
            what,
            key: key.map(Into::into),
            operation: offset,
            here: Some(here.into()),
            leader: Some(leader.into()),
        }
    }
}

impl TryFrom<v1::EffectDifference> for Difference {
    type Error = Error;

    fn try_from(message: v1::EffectDifference) -> Result<Difference, Error> {
        let v1::EffectDifference { what, key, operation, here, leader } = message;
        let (here, leader) = (here.unwrap_or_default().try_into()?, leader.unwrap_or_default().try_into()?);
        Ok(Difference { what, key: key.map(Into::into), offset: operation, here, leader })
    }
}

impl From<Side> for v1::ComparedSide {
    fn from(side: Side) -> v1::ComparedSide {
        let Side { number, bytes, digest, deleted } = side;
        let digest = bytes.map(|_| format!("{digest:016x}")).unwrap_or_default();
        v1::ComparedSide { number, bytes, digest, deleted }
    }
}

impl TryFrom<v1::ComparedSide> for Side {
    type Error = Error;

    fn try_from(message: v1::ComparedSide) -> Result<Side, Error> {
        let v1::ComparedSide { number, bytes, digest, deleted } = message;
        let digest = match digest.as_str() {
            "" => 0,
            digits => u64::from_str_radix(digits, 16)
                .map_err(|_| Error::Unknown(format!("the node answers with a digest of {digits:?}")))?,
        };
        Ok(Side { number, bytes, digest, deleted })
    }
}
