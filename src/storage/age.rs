//! How old a data directory is: a number that only grows, and a name for each life of the node in it, so that
//! others who remember both can tell an old copy of the directory from the newest.
//!
//! Promises: what is returned is durable; a life whose name was told to the cluster is never begun again from
//! a directory that is as it was; a start that the cluster did not hear of does not make the directory older,
//! so that an old copy that is started again and again never overtakes what the cluster remembers.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::directory::{Directory, DirectoryError, io_error};
use super::sealed;

/// The file's name in the directory.
const AGE_FILE: &str = "age";

/// How old a directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Age {
    /// Counted up with each life that the cluster heard of, and now and then while the node runs.
    pub count: u64,
    /// The name of this life, drawn at random.
    pub life: u64,
    /// Whether the cluster has heard of this life: the next start begins another.
    known: bool,
}

impl Directory {
    /// Begins a life, which is called `life` unless the one before was not heard of: then that one goes on.
    ///
    /// # Errors
    /// `Damaged` if the file does not read as it was written.
    pub fn begin_life(&self, life: u64) -> Result<Age, DirectoryError> {
        let age = match read(self.root())? {
            Some(before) if !before.known => return Ok(before),
            Some(before) => Age { count: before.count + 1, life, known: false },
            None => Age { count: 1, life, known: false },
        };
        self.keep(age)
    }

    /// The cluster has heard of this life.
    ///
    /// # Errors
    /// As of [`begin_life`](Directory::begin_life).
    pub fn life_is_known(&self) -> Result<(), DirectoryError> {
        match read(self.root())? {
            Some(age) if !age.known => self.keep(Age { known: true, ..age }).map(drop),
            _ => Ok(()),
        }
    }

    /// Counts the age up, in a life that the cluster has heard of.
    ///
    /// # Errors
    /// As of [`begin_life`](Directory::begin_life).
    pub fn grow_older(&self) -> Result<Option<Age>, DirectoryError> {
        match read(self.root())? {
            Some(age) if age.known => self.keep(Age { count: age.count + 1, ..age }).map(Some),
            _ => Ok(None),
        }
    }

    fn keep(&self, age: Age) -> Result<Age, DirectoryError> {
        let write = || sealed::write(self.root(), AGE_FILE, &serde_json::to_string(&age)?);
        write().map_err(io_error(self.root(), "writing its age"))?;
        Ok(age)
    }
}

/// None: the directory is new.
fn read(root: &Path) -> Result<Option<Age>, DirectoryError> {
    let Some(line) = sealed::read(root, AGE_FILE, "reading its age")? else { return Ok(None) };
    let age = serde_json::from_str(&line);
    age.map(Some).map_err(|_| sealed::damaged(root, AGE_FILE, "a part of it is missing"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::damage::{cuts, flips};
    use crate::storage::directory::Identity;

    fn established(place: &Path) -> Directory {
        let mut directory = Directory::open(place, "n1").unwrap();
        if directory.identity().is_none() {
            let identity =
                Identity { node: 7, name: "n1".into(), cluster: 9, replica: 3, contacts: Vec::new() };
            directory.establish(identity).unwrap();
        }
        directory
    }

    fn stand(age: Age) -> (u64, u64) {
        (age.count, age.life)
    }

    #[test]
    fn a_life_that_was_heard_of_is_followed_by_an_older_one_and_another_goes_on() {
        let place = tempfile::tempdir().unwrap();
        let directory = established(place.path());
        assert_eq!(stand(directory.begin_life(70).unwrap()), (1, 70));
        // Nobody has heard of it.
        assert_eq!(stand(directory.begin_life(71).unwrap()), (1, 70));
        assert_eq!(directory.grow_older().unwrap(), None);
        directory.life_is_known().unwrap();
        assert_eq!(directory.grow_older().unwrap().map(stand), Some((2, 70)));
        directory.life_is_known().unwrap();
        drop(directory);
        let directory = established(place.path());
        for life in [72, 73, 74] {
            assert_eq!(stand(directory.begin_life(life).unwrap()), (3, 72));
        }
    }

    #[test]
    fn damage_is_refused_wherever_it_is() {
        let place = tempfile::tempdir().unwrap();
        let directory = established(place.path());
        directory.begin_life(70).unwrap();
        let path = place.path().join(AGE_FILE);
        let whole = std::fs::read(&path).unwrap();
        for changed in flips(&whole).chain(cuts(&whole)) {
            std::fs::write(&path, &changed).unwrap();
            let told = directory.begin_life(71).unwrap_err();
            assert!(told.to_string().contains("/age is damaged"), "{told} for {changed:?}");
        }
    }
}
