//! A resident machine's state on its way from one component to another: all in memory, as both have it there
//! anyway.

use std::io::Cursor;
use std::sync::Arc;

use bytes::Bytes;

use super::{Broken, Halt, Sink};
use crate::machine::frame::Frame;
use crate::machine::guest::{Ending, Instance};
use crate::machine::outcome::HostCode;
use crate::machine::view::View;

/// Has an instance write its state. It must not be used for inputs any more.
pub fn save(instance: &mut dyn Instance, view: Arc<dyn View>) -> Result<Bytes, Broken> {
    let sink = Sink::default();
    let (frame, ending) = instance.save(Frame::for_save(view, Box::new(sink.clone())));
    drop(frame);
    check(ending, "the present component cannot save its state")?;
    Ok(sink.take())
}

/// Has an instance become what was saved.
pub fn restore(instance: &mut dyn Instance, state: &Bytes, view: Arc<dyn View>) -> Result<(), Broken> {
    let source = Box::new(Cursor::new(state.clone()));
    let (frame, ending) = instance.restore(Frame::for_restore(view, source));
    drop(frame);
    check(ending, "the other component cannot restore the state")
}

/// The same with the component that saved it, which the machine keeps.
pub fn go_back(instance: &mut dyn Instance, state: &Bytes, view: Arc<dyn View>) -> Result<(), Broken> {
    restore(instance, state, view).map_err(|broken| match broken {
        Broken::Died { why, .. } => {
            Broken::Halt(Halt::CannotRestore(format!("after a refused upgrade: {why}")))
        }
        halt => halt,
    })
}

/// What goes wrong here is the end of the upgrade, which is the first input of its batch.
fn check(ending: Ending, what: &str) -> Result<(), Broken> {
    let died = |code, why| Err(Broken::Died { offset: 0, code, why: format!("{what}: {why}") });
    match ending {
        Ending::Answer(_) => Ok(()),
        Ending::Refused(refusal) => died(HostCode::Trapped, refusal.message),
        Ending::Trapped(why) => died(HostCode::Trapped, why),
        Ending::Exhausted(why) => died(HostCode::Exhausted, why),
        Ending::Fault(fault) => Err(Broken::Halt(Halt::Fault(fault))),
    }
}
