//! Reading the query of a call: nothing is guessed, and what cannot be is refused by its name.

use axum::extract::Request;
use percent_encoding::percent_decode_str;

use crate::problem::Problem;

/// The parameters of a query, in order.
#[derive(Debug)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Of a call that takes only these.
    ///
    /// # Errors
    /// What is wrong with it, by the parameter's name.
    pub fn of(request: &Request, known: &[&str]) -> Result<Self, Problem> {
        let query = request.uri().query().unwrap_or_default();
        let pairs = query.split('&').filter(|pair| !pair.is_empty());
        let pairs = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        let pairs: Vec<(String, String)> = pairs
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        match pairs.iter().find(|(name, _)| !known.contains(&&**name)) {
            Some((name, _)) => Err(Problem::bad_field(
                name,
                format!("there is no such parameter; there is {}", known.join(", ")),
            )),
            None => Ok(Self(pairs)),
        }
    }

    /// Everything that is listed under `name`: with commas between, in one parameter or several. A comma of a value itself is `%2C`.
    pub fn list(&self, name: &str) -> Vec<Vec<u8>> {
        let values = self.0.iter().filter(|(it, _)| it == name);
        values
            .flat_map(|(_, value)| value.split(','))
            .map(|value| percent_decode_str(&value.replace('+', " ")).collect())
            .collect()
    }

    /// The text of the one `name`, if there is any.
    ///
    /// # Errors
    /// What is wrong with it, by the parameter's name.
    pub fn one(&self, name: &str) -> Result<Option<String>, Problem> {
        let mut values = self.0.iter().filter(|(it, _)| it == name);
        let value = values.next().map(|(_, value)| value.replace('+', " "));
        if values.next().is_some() {
            return Err(Problem::bad_field(name, "is given twice; give it once"));
        }
        let decoded = value.map(|value| text(name, percent_decode_str(&value).collect()));
        decoded.transpose()
    }
}

/// A value that has to be text.
///
/// # Errors
/// What is wrong with it, by the parameter's name.
pub fn text(name: &str, value: Vec<u8>) -> Result<String, Problem> {
    String::from_utf8(value).map_err(|_| Problem::bad_field(name, "is not UTF-8"))
}
