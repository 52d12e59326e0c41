//! Sizes as integer expressions over symbols, in a normal form.
//!
//! A size is a polynomial with integer coefficients over atoms. An atom is a symbol, or a
//! floor division, maximum, minimum or broadcast of two sizes that could not be worked out
//! any further. Like terms are collected and terms are sorted, so equal polynomials have equal
//! forms and `==` answers "surely equal"; two forms that differ may still be equal.
//!
//! Every operation answers `None` when a coefficient overflows or the expression outgrows
//! [`MAX_WEIGHT`]: a hostile model can't make one that is costly to handle.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::value::Name;

/// The largest number of terms and atoms of an expression, nested ones included.
pub const MAX_WEIGHT: u32 = 64;

/// The largest degree of a term.
const MAX_DEGREE: u32 = 64;

/// An unknown number.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Symbol {
    /// A size that the model names, such as `batch`: equal names are equal sizes.
    Named(Name),
    /// A size without a name. The number tells such sizes apart within one analysis.
    Size(u32),
    /// Any integer, possibly negative: an unknown element of a tensor.
    Number(u32),
}

/// An integer expression over symbols.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SymDim(Repr);

/// `Sum` holds only what the other two can't.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Repr {
    Known(i64),
    Symbol(Symbol),
    Sum(Arc<Sum>),
}

#[derive(PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Sum {
    terms: Vec<(Monomial, i64)>,
    weight: u32,
}

/// A product of powers of atoms, sorted by atom; the empty product is 1.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
struct Monomial {
    degree: u32,
    factors: SmallVec<[(Atom, u32); 2]>,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Atom {
    Symbol(Symbol),
    Call(Call, Arc<(SymDim, SymDim)>),
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Call {
    Floor,
    Max,
    Min,
    Broadcast,
}

type Terms = BTreeMap<Monomial, i64>;

/// An interval that a number surely lies in; `None` is unbounded.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Bounds {
    low: Option<i64>,
    high: Option<i64>,
}

impl Bounds {
    fn known(v: i64) -> Bounds {
        Bounds {
            low: Some(v),
            high: Some(v),
        }
    }

    fn add(self, other: Bounds) -> Bounds {
        let add = |a: Option<i64>, b: Option<i64>| a?.checked_add(b?);
        Bounds {
            low: add(self.low, other.low),
            high: add(self.high, other.high),
        }
    }

    fn scale(self, k: i64) -> Bounds {
        let mul = |a: Option<i64>| a?.checked_mul(k);
        if k >= 0 {
            Bounds {
                low: mul(self.low),
                high: mul(self.high),
            }
        } else {
            Bounds {
                low: mul(self.high),
                high: mul(self.low),
            }
        }
    }

    /// The product, worked out only for what is not negative.
    fn mul(self, other: Bounds) -> Bounds {
        let mul = |a: Option<i64>, b: Option<i64>| a?.checked_mul(b?);
        match (self.low, other.low) {
            (Some(0..), Some(0..)) => Bounds {
                low: mul(self.low, other.low),
                high: mul(self.high, other.high),
            },
            _ => Bounds {
                low: None,
                high: None,
            },
        }
    }
}

impl Monomial {
    fn atom(atom: Atom) -> Monomial {
        let mut factors = SmallVec::new();
        factors.push((atom, 1));
        Monomial { degree: 1, factors }
    }

    fn is_one(&self) -> bool {
        self.factors.is_empty()
    }

    fn mul(&self, other: &Monomial) -> Option<Monomial> {
        let degree = self.degree.checked_add(other.degree)?;
        if degree > MAX_DEGREE {
            return None;
        }
        let mut powers: BTreeMap<&Atom, u32> = BTreeMap::new();
        for (atom, n) in self.factors.iter().chain(&other.factors) {
            let p = powers.entry(atom).or_insert(0);
            *p = p.checked_add(*n)?;
        }
        let factors = powers.into_iter().map(|(a, n)| (a.clone(), n)).collect();
        Some(Monomial { degree, factors })
    }

    /// The quotient, when every power stands in this product.
    fn div(&self, other: &Monomial) -> Option<Monomial> {
        let mut powers: BTreeMap<&Atom, u32> = self.factors.iter().map(|(a, n)| (a, *n)).collect();
        for (atom, n) in &other.factors {
            let p = powers.get_mut(atom)?;
            *p = p.checked_sub(*n)?;
        }
        let factors = powers
            .into_iter()
            .filter(|(_, n)| *n > 0)
            .map(|(a, n)| (a.clone(), n))
            .collect();
        Some(Monomial {
            degree: self.degree.checked_sub(other.degree)?,
            factors,
        })
    }

    fn bounds(&self) -> Bounds {
        let mut all = Bounds::known(1);
        for (atom, n) in &self.factors {
            for _ in 0..*n {
                all = all.mul(atom.bounds());
            }
        }
        all
    }

    fn weight(&self) -> u32 {
        self.factors.iter().fold(0, |sum: u32, (atom, _)| {
            sum.saturating_add(match atom {
                Atom::Symbol(_) => 1,
                Atom::Call(_, args) => args.0.weight().saturating_add(args.1.weight()),
            })
        })
    }
}

impl Atom {
    fn bounds(&self) -> Bounds {
        let (call, args) = match self {
            Atom::Symbol(Symbol::Number(_)) => {
                return Bounds {
                    low: None,
                    high: None,
                };
            }
            Atom::Symbol(_) => {
                return Bounds {
                    low: Some(0),
                    high: None,
                };
            }
            Atom::Call(call, args) => (call, args),
        };
        let (a, b) = (args.0.bounds(), args.1.bounds());
        match call {
            Call::Floor => match args.1.known() {
                Some(c) if c > 0 => Bounds {
                    low: a.low.map(|v| v.div_euclid(c)),
                    high: a.high.map(|v| v.div_euclid(c)),
                },
                // Made only of a dividend that is not negative and a divisor that is a size.
                _ => Bounds {
                    low: Some(0),
                    high: a.high,
                },
            },
            Call::Max => Bounds {
                low: a.low.max(b.low),
                high: a.high.zip(b.high).map(|(a, b)| a.max(b)),
            },
            Call::Min => Bounds {
                low: a.low.zip(b.low).map(|(a, b)| a.min(b)),
                high: match (a.high, b.high) {
                    (Some(a), Some(b)) => Some(a.min(b)),
                    (a, b) => a.or(b),
                },
            },
            Call::Broadcast => Bounds {
                low: Some(0),
                high: None,
            },
        }
    }
}

impl Atom {
    fn value_at(&self, size: &dyn Fn(&Symbol) -> i64) -> Option<i64> {
        let (call, args) = match self {
            Atom::Symbol(s) => return Some(size(s)),
            Atom::Call(call, args) => (call, args),
        };
        let (a, b) = (args.0.value_at(size)?, args.1.value_at(size)?);
        match call {
            Call::Floor => floor_div(a, b),
            Call::Max => Some(a.max(b)),
            Call::Min => Some(a.min(b)),
            Call::Broadcast => Some(if a == 1 { b } else { a }),
        }
    }
}

fn add_term(terms: &mut Terms, m: Monomial, k: i64) -> Option<()> {
    let slot = terms.entry(m).or_insert(0);
    *slot = slot.checked_add(k)?;
    Some(())
}

impl From<i64> for SymDim {
    fn from(v: i64) -> SymDim {
        SymDim(Repr::Known(v))
    }
}

impl From<usize> for SymDim {
    /// A size in memory always fits.
    fn from(v: usize) -> SymDim {
        SymDim(Repr::Known(i64::try_from(v).unwrap_or(i64::MAX)))
    }
}

impl From<Symbol> for SymDim {
    fn from(s: Symbol) -> SymDim {
        SymDim(Repr::Symbol(s))
    }
}

impl SymDim {
    /// A named size.
    pub fn named(name: impl Into<Name>) -> SymDim {
        Symbol::Named(name.into()).into()
    }

    /// The number, when this is one.
    pub fn known(&self) -> Option<i64> {
        match self.0 {
            Repr::Known(v) => Some(v),
            _ => None,
        }
    }

    /// The symbol, when this is nothing else.
    pub fn symbol(&self) -> Option<&Symbol> {
        match &self.0 {
            Repr::Symbol(s) => Some(s),
            _ => None,
        }
    }

    /// The name, when this is a named size and nothing else.
    pub fn name(&self) -> Option<&Name> {
        match self.symbol()? {
            Symbol::Named(name) => Some(name),
            _ => None,
        }
    }

    /// Whether this is a size without a name and nothing else.
    pub fn is_anonymous(&self) -> bool {
        matches!(self.symbol(), Some(Symbol::Size(_)))
    }

    fn weight(&self) -> u32 {
        match &self.0 {
            Repr::Sum(sum) => sum.weight,
            _ => 1,
        }
    }

    fn terms(&self) -> Terms {
        match &self.0 {
            Repr::Known(0) => Terms::new(),
            Repr::Known(v) => Terms::from([(Monomial::default(), *v)]),
            Repr::Symbol(s) => Terms::from([(Monomial::atom(Atom::Symbol(s.clone())), 1)]),
            Repr::Sum(sum) => sum.terms.iter().cloned().collect(),
        }
    }

    fn from_terms(mut terms: Terms) -> Option<SymDim> {
        terms.retain(|_, k| *k != 0);
        let mut all = terms.iter();
        match (all.next(), all.next()) {
            (None, _) => return Some(SymDim::from(0i64)),
            (Some((m, k)), None) if m.is_one() => return Some(SymDim::from(*k)),
            (Some((m, 1)), None) => {
                if let [(Atom::Symbol(s), 1)] = m.factors.as_slice() {
                    return Some(s.clone().into());
                }
            }
            _ => {}
        }
        let weight = terms
            .keys()
            .fold(0u32, |n, m| n.saturating_add(m.weight().max(1)));
        if weight > MAX_WEIGHT {
            return None;
        }
        let terms = terms.into_iter().collect();
        Some(SymDim(Repr::Sum(Arc::new(Sum { terms, weight }))))
    }

    fn call(call: Call, a: &SymDim, b: &SymDim) -> Option<SymDim> {
        let atom = Atom::Call(call, Arc::new((a.clone(), b.clone())));
        SymDim::from_terms(Terms::from([(Monomial::atom(atom), 1)]))
    }

    /// The sum.
    pub fn add(&self, other: &SymDim) -> Option<SymDim> {
        match (self.known(), other.known()) {
            (Some(a), Some(b)) => return Some(a.checked_add(b)?.into()),
            (Some(0), None) => return Some(other.clone()),
            (None, Some(0)) => return Some(self.clone()),
            _ => {}
        }
        let mut terms = self.terms();
        for (m, k) in other.terms() {
            add_term(&mut terms, m, k)?;
        }
        SymDim::from_terms(terms)
    }

    /// The difference.
    pub fn sub(&self, other: &SymDim) -> Option<SymDim> {
        self.add(&other.neg()?)
    }

    /// The number with the other sign.
    pub fn neg(&self) -> Option<SymDim> {
        self.mul(&SymDim::from(-1i64))
    }

    /// The product.
    pub fn mul(&self, other: &SymDim) -> Option<SymDim> {
        match (self.known(), other.known()) {
            (Some(a), Some(b)) => return Some(a.checked_mul(b)?.into()),
            (Some(1), None) => return Some(other.clone()),
            (None, Some(1)) => return Some(self.clone()),
            _ => {}
        }
        let mut terms = Terms::new();
        let right = other.terms();
        for (m, k) in self.terms() {
            for (n, l) in &right {
                add_term(&mut terms, m.mul(n)?, k.checked_mul(*l)?)?;
            }
        }
        SymDim::from_terms(terms)
    }

    /// The quotient rounded down. A divisor that is not known is taken to be no zero, since
    /// the operators that divide by sizes mean nothing else.
    pub fn div_floor(&self, by: &SymDim) -> Option<SymDim> {
        match (self.known(), by.known()) {
            (_, Some(0)) => None,
            (_, Some(1)) => Some(self.clone()),
            (Some(a), Some(b)) => floor_div(a, b).map(SymDim::from),
            (None, Some(b)) if b > 0 => self.div_by_known(b),
            (None, Some(_)) => self.neg()?.div_floor(&by.neg()?),
            (Some(0), None) => Some(SymDim::from(0i64)),
            (_, None) => {
                if let Some(q) = self.div_exact(by) {
                    return Some(q);
                }
                if !self.is_not_negative() || !by.is_not_negative() {
                    return None;
                }
                SymDim::call(Call::Floor, self, by)
            }
        }
    }

    /// The quotient rounded up; see [`SymDim::div_floor`].
    pub fn div_ceil(&self, by: &SymDim) -> Option<SymDim> {
        if let (Some(a), Some(b)) = (self.known(), by.known()) {
            let down = floor_div(a, b)?;
            let exact = down.checked_mul(b) == Some(a);
            return Some(SymDim::from(if exact {
                down
            } else {
                down.checked_add(1)?
            }));
        }
        if by.known().is_none()
            && let Some(q) = self.div_exact(by)
        {
            return Some(q);
        }
        if by.known().is_some_and(|b| b < 0) {
            return self.neg()?.div_ceil(&by.neg()?);
        }
        self.add(by)?.sub(&SymDim::from(1i64))?.div_floor(by)
    }

    /// The quotient rounded towards zero, as ONNX divides integers; `None` where the signs
    /// are not known.
    pub fn div_trunc(&self, by: &SymDim) -> Option<SymDim> {
        if let (Some(a), Some(b)) = (self.known(), by.known()) {
            return a.checked_div(b).map(SymDim::from);
        }
        if self.is_not_negative() && by.is_not_negative() {
            return self.div_floor(by);
        }
        None
    }

    /// What remains of [`SymDim::div_floor`]: it has the sign of the divisor.
    pub fn rem_floor(&self, by: &SymDim) -> Option<SymDim> {
        self.sub(&self.div_floor(by)?.mul(by)?)
    }

    /// The quotient, when the division leaves no remainder whatever the symbols are.
    pub fn div_exact(&self, by: &SymDim) -> Option<SymDim> {
        if self == by && by.known() != Some(0) {
            return Some(SymDim::from(1i64));
        }
        let divisor = by.terms();
        let (lead, k) = divisor.last_key_value()?;
        let mut rest = self.terms();
        let mut quotient = Terms::new();
        for _ in 0..MAX_WEIGHT {
            let Some((m, l)) = rest.last_key_value() else {
                return SymDim::from_terms(quotient);
            };
            let m = m.div(lead)?;
            if l.checked_rem(*k)? != 0 {
                return None;
            }
            let l = l.checked_div(*k)?;
            for (n, j) in &divisor {
                add_term(&mut rest, m.mul(n)?, j.checked_mul(l)?.checked_neg()?)?;
            }
            rest.retain(|_, k| *k != 0);
            add_term(&mut quotient, m, l)?;
        }
        None
    }

    /// Division by a known number above 1. Whole multiples move out of the quotient, the rest
    /// has coefficients from 0 to the divisor, and nested divisions become one.
    fn div_by_known(&self, by: i64) -> Option<SymDim> {
        let mut whole = Terms::new();
        let mut rest = Terms::new();
        for (m, k) in self.terms() {
            let (q, r) = (k.div_euclid(by), k.rem_euclid(by));
            if q != 0 {
                whole.insert(m.clone(), q);
            }
            if r != 0 {
                rest.insert(m, r);
            }
        }
        let constant = rest.remove(&Monomial::default()).unwrap_or(0);
        let whole = SymDim::from_terms(whole)?;
        if rest.is_empty() {
            // What is left is a number from 0 to the divisor, so nothing of it is whole.
            return Some(whole);
        }
        let common = rest.values().fold(by, |g, &k| gcd(g, k));
        rest.values_mut().for_each(|k| *k /= common);
        let (constant, by) = (constant / common, by / common);
        let rest_alone = SymDim::from_terms(rest)?;
        let part = if let Some((inner, c)) = rest_alone.as_floor_by_known() {
            let inner = inner.add(&SymDim::from(constant.checked_mul(c)?))?;
            inner.div_by_known(by.checked_mul(c)?)?
        } else {
            let dividend = rest_alone.add(&SymDim::from(constant))?;
            SymDim::call(Call::Floor, &dividend, &SymDim::from(by))?
        };
        whole.add(&part)
    }

    /// The dividend and the divisor, when this is a floor division by a known number.
    fn as_floor_by_known(&self) -> Option<(SymDim, i64)> {
        let (Call::Floor, args) = self.as_call()? else {
            return None;
        };
        Some((args.0.clone(), args.1.known()?))
    }

    fn as_call(&self) -> Option<(Call, &(SymDim, SymDim))> {
        let Repr::Sum(sum) = &self.0 else {
            return None;
        };
        match sum.terms.as_slice() {
            [(m, 1)] => match m.factors.as_slice() {
                [(Atom::Call(call, args), 1)] => Some((*call, args)),
                _ => None,
            },
            _ => None,
        }
    }

    fn bounds(&self) -> Bounds {
        match &self.0 {
            Repr::Known(v) => Bounds::known(*v),
            Repr::Symbol(s) => Atom::Symbol(s.clone()).bounds(),
            Repr::Sum(sum) => sum
                .terms
                .iter()
                .fold(Bounds::known(0), |b, (m, k)| b.add(m.bounds().scale(*k))),
        }
    }

    /// A number that this is surely not below. Sizes are not below zero.
    pub fn lower_bound(&self) -> Option<i64> {
        self.bounds().low
    }

    /// A number that this is surely not above.
    pub fn upper_bound(&self) -> Option<i64> {
        self.bounds().high
    }

    /// Whether this is surely zero or more.
    pub fn is_not_negative(&self) -> bool {
        self.lower_bound().is_some_and(|v| v >= 0)
    }

    /// Whether this is surely below zero.
    pub fn is_negative(&self) -> bool {
        self.upper_bound().is_some_and(|v| v < 0)
    }

    /// Whether this is surely at most the other.
    pub fn at_most(&self, other: &SymDim) -> bool {
        self == other || other.sub(self).is_some_and(|d| d.is_not_negative())
    }

    /// The larger of the two.
    pub fn maximum(&self, other: &SymDim) -> Option<SymDim> {
        if self.at_most(other) {
            return Some(other.clone());
        }
        if other.at_most(self) {
            return Some(self.clone());
        }
        let (a, b) = sorted(self, other);
        SymDim::call(Call::Max, a, b)
    }

    /// The smaller of the two.
    pub fn minimum(&self, other: &SymDim) -> Option<SymDim> {
        if self.at_most(other) {
            return Some(self.clone());
        }
        if other.at_most(self) {
            return Some(other.clone());
        }
        let (a, b) = sorted(self, other);
        SymDim::call(Call::Min, a, b)
    }

    /// Whether the two are equal: `None` when that depends on the symbols.
    pub fn equals(&self, other: &SymDim) -> Option<bool> {
        if self == other {
            return Some(true);
        }
        let d = self.sub(other)?;
        if d.is_negative() || d.lower_bound().is_some_and(|v| v > 0) {
            return Some(false);
        }
        d.known().map(|v| v == 0)
    }

    /// Whether this is below the other: `None` when that depends on the symbols.
    pub fn less(&self, other: &SymDim) -> Option<bool> {
        let d = self.sub(other)?;
        if d.is_negative() {
            return Some(true);
        }
        d.is_not_negative().then_some(false)
    }

    /// The size that two sizes broadcast to, given that they do; `None` also when they can't.
    /// Sizes broadcast when they are equal or one of them is 1.
    pub fn broadcast(&self, other: &SymDim) -> Option<SymDim> {
        if self == other {
            return Some(self.clone());
        }
        match (self.known(), other.known()) {
            (Some(1), _) => return Some(other.clone()),
            (_, Some(1)) => return Some(self.clone()),
            (Some(_), Some(_)) => return None,
            (Some(_), None) => return Some(self.clone()),
            (None, Some(_)) => return Some(other.clone()),
            (None, None) => {}
        }
        // What is surely above 1 is the result.
        let large = |d: &SymDim| d.lower_bound().is_some_and(|v| v > 1);
        if large(self) || other.absorbs_min(self) {
            return Some(if large(self) { self } else { other }.clone());
        }
        if large(other) || self.absorbs_min(other) {
            return Some(if large(other) { other } else { self }.clone());
        }
        if self.is_broadcast_of(other) {
            return Some(self.clone());
        }
        if other.is_broadcast_of(self) {
            return Some(other.clone());
        }
        let (a, b) = sorted(self, other);
        SymDim::call(Call::Broadcast, a, b)
    }

    fn is_broadcast_of(&self, part: &SymDim) -> bool {
        matches!(self.as_call(), Some((Call::Broadcast, (a, b))) if a == part || b == part)
    }

    /// Whether `min` is `min(this, c)` with `c` above 1: where the two broadcast, they do to
    /// this. (`min` is 1 only where this is 1 as well.) So positions cut to a sequence length
    /// broadcast against the sequence.
    fn absorbs_min(&self, min: &SymDim) -> bool {
        let Some((Call::Min, (a, b))) = min.as_call() else {
            return false;
        };
        let large = |d: &SymDim| d.lower_bound().is_some_and(|v| v > 1);
        (a == self && large(b)) || (b == self && large(a))
    }

    fn any_symbol(&self, test: &dyn Fn(&Symbol) -> bool) -> bool {
        match &self.0 {
            Repr::Known(_) => false,
            Repr::Symbol(s) => test(s),
            Repr::Sum(sum) => sum.terms.iter().any(|(m, _)| {
                m.factors.iter().any(|(atom, _)| match atom {
                    Atom::Symbol(s) => test(s),
                    Atom::Call(_, args) => args.0.any_symbol(test) || args.1.any_symbol(test),
                })
            }),
        }
    }

    /// Whether a number of unknown sign stands in this.
    pub fn mentions_number(&self) -> bool {
        self.any_symbol(&|s| matches!(s, Symbol::Number(_)))
    }

    /// The number that this amounts to when every symbol has the value that `size` gives it;
    /// `None` on overflow and division by zero.
    pub fn value_at(&self, size: &dyn Fn(&Symbol) -> i64) -> Option<i64> {
        let sum = match &self.0 {
            Repr::Known(v) => return Some(*v),
            Repr::Symbol(s) => return Some(size(s)),
            Repr::Sum(sum) => sum,
        };
        let mut total = 0i64;
        for (monomial, k) in &sum.terms {
            let mut term = *k;
            for (atom, power) in &monomial.factors {
                let value = atom.value_at(size)?.checked_pow(*power)?;
                term = term.checked_mul(value)?;
            }
            total = total.checked_add(term)?;
        }
        Some(total)
    }

    /// Whether a symbol without a name stands in this whose number is at least `first`.
    pub fn mentions_anonymous_since(&self, first: u32) -> bool {
        self.any_symbol(&|s| matches!(s, Symbol::Number(n) | Symbol::Size(n) if *n >= first))
    }

    /// The product of sizes.
    pub fn product<'a>(dims: impl IntoIterator<Item = &'a SymDim>) -> Option<SymDim> {
        let mut all = SymDim::from(1i64);
        for d in dims {
            // A zero makes the product zero, even where other factors overflow.
            if d.known() == Some(0) {
                return Some(SymDim::from(0i64));
            }
            all = all.mul(d)?;
        }
        Some(all)
    }
}

fn sorted<'a>(a: &'a SymDim, b: &'a SymDim) -> (&'a SymDim, &'a SymDim) {
    if a <= b { (a, b) } else { (b, a) }
}

fn floor_div(a: i64, b: i64) -> Option<i64> {
    let q = a.checked_div(b)?;
    let inexact = a.checked_rem(b)? != 0;
    if inexact && (a < 0) != (b < 0) {
        q.checked_sub(1)
    } else {
        Some(q)
    }
}

fn gcd(mut a: i64, mut b: i64) -> i64 {
    while b != 0 {
        (a, b) = (b, a.wrapping_rem(b));
    }
    a
}

impl fmt::Display for Symbol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Symbol::Named(name) => f.write_str(&crate::escape(name)),
            Symbol::Size(n) => write!(f, "?{n}"),
            Symbol::Number(n) => write!(f, "?n{n}"),
        }
    }
}

impl fmt::Display for Atom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Atom::Symbol(s) => s.fmt(f),
            Atom::Call(Call::Floor, args) => write!(f, "floor(({})/({}))", args.0, args.1),
            Atom::Call(Call::Max, args) => write!(f, "max({}, {})", args.0, args.1),
            Atom::Call(Call::Min, args) => write!(f, "min({}, {})", args.0, args.1),
            Atom::Call(Call::Broadcast, args) => write!(f, "broadcast({}, {})", args.0, args.1),
        }
    }
}

impl fmt::Display for SymDim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sum = match &self.0 {
            Repr::Known(v) => return write!(f, "{v}"),
            Repr::Symbol(s) => return s.fmt(f),
            Repr::Sum(sum) => sum,
        };
        for (i, (m, k)) in sum.terms.iter().rev().enumerate() {
            let sign = match (i, *k < 0) {
                (0, false) => "",
                (0, true) => "-",
                (_, false) => " + ",
                (_, true) => " - ",
            };
            f.write_str(sign)?;
            let k = k.unsigned_abs();
            if k != 1 || m.is_one() {
                write!(f, "{k}{}", if m.is_one() { "" } else { "*" })?;
            }
            let mut first = true;
            for (atom, n) in &m.factors {
                for _ in 0..*n {
                    write!(f, "{}{atom}", if first { "" } else { "*" })?;
                    first = false;
                }
            }
        }
        Ok(())
    }
}

impl fmt::Debug for SymDim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]
    use super::*;

    fn n(v: i64) -> SymDim {
        v.into()
    }

    fn s(name: &str) -> SymDim {
        SymDim::named(name)
    }

    #[test]
    fn like_terms_are_collected() {
        let h = s("h");
        let a = h.mul(&n(2)).unwrap().add(&n(3)).unwrap();
        let b = n(3).add(&h).unwrap().add(&h).unwrap();
        assert_eq!(a, b);
        assert_eq!(a.to_string(), "2*h + 3");
        assert_eq!(a.sub(&b).unwrap(), n(0));
        let square = h.add(&n(1)).unwrap();
        let square = square.mul(&square).unwrap();
        assert_eq!(square.to_string(), "h*h + 2*h + 1");
    }

    #[test]
    fn what_divides_without_remainder_is_divided() {
        let total = SymDim::product([&s("b"), &s("t"), &n(12), &n(64)]).unwrap();
        let rows = s("b").mul(&s("t")).unwrap();
        assert_eq!(total.div_floor(&rows).unwrap(), n(768));
        let half = s("h").add(&n(1)).unwrap().div_floor(&n(2)).unwrap();
        let area = half.mul(&half).unwrap().mul(&n(24)).unwrap();
        assert_eq!(area.div_floor(&half).unwrap(), half.mul(&n(24)).unwrap());
        let plus = s("h").add(&n(1)).unwrap();
        let minus = s("h").sub(&n(1)).unwrap();
        let product = plus.mul(&minus).unwrap();
        assert_eq!(product.div_exact(&plus), Some(minus));
        assert_eq!(product.div_exact(&s("w")), None);
    }

    #[test]
    fn floor_divisions_are_normal() {
        let h = s("h");
        let whole = h.mul(&n(4)).unwrap().add(&n(7)).unwrap();
        assert_eq!(whole.div_floor(&n(2)).unwrap().to_string(), "2*h + 3");
        let three = h.mul(&n(3)).unwrap().sub(&n(1)).unwrap();
        assert_eq!(
            three.div_floor(&n(2)).unwrap().to_string(),
            "floor((h + 1)/(2)) + h - 1"
        );
        // Two halvings of an extent are one division by four.
        let once = h.sub(&n(1)).unwrap().div_floor(&n(2)).unwrap();
        let twice = once.div_floor(&n(2)).unwrap();
        assert_eq!(twice, h.sub(&n(1)).unwrap().div_floor(&n(4)).unwrap());
        let reduced = h.mul(&n(4)).unwrap().add(&n(3)).unwrap();
        assert_eq!(
            reduced.div_floor(&n(6)).unwrap().to_string(),
            "floor((2*h + 1)/(3))"
        );
    }

    #[test]
    fn normal_forms_agree_with_numbers() {
        // Every form below, evaluated at x by substitution of numbers for the symbol.
        for x in 0..40i64 {
            for a in -5..6i64 {
                for b in [-9, -1, 0, 3, 7i64] {
                    for c in 1..7i64 {
                        let exact = n(a * x + b).div_floor(&n(c)).unwrap().known().unwrap();
                        let form = s("x")
                            .mul(&n(a))
                            .and_then(|d| d.add(&n(b)))
                            .and_then(|d| d.div_floor(&n(c)))
                            .unwrap();
                        assert_eq!(eval(&form, x), exact, "({a}x{b:+})/{c} at {x}: {form}");
                        assert!(form.lower_bound().is_none_or(|low| low <= exact));
                        assert!(form.upper_bound().is_none_or(|high| high >= exact));
                    }
                }
            }
        }
    }

    fn eval(d: &SymDim, x: i64) -> i64 {
        let mut sum = 0;
        for (m, k) in d.terms() {
            let mut product = k;
            for (atom, n) in m.factors {
                let v = match atom {
                    Atom::Symbol(_) => x,
                    Atom::Call(Call::Floor, args) => eval(&args.0, x).div_euclid(eval(&args.1, x)),
                    Atom::Call(..) => panic!("only divisions"),
                };
                product *= v.pow(n);
            }
            sum += product;
        }
        sum
    }

    #[test]
    fn symbols_can_be_given_values() {
        let at = |d: &SymDim, v| d.value_at(&|_| v);
        let half = s("h").add(&n(1)).and_then(|d| d.div_floor(&n(2)));
        let d = half.and_then(|d| d.mul(&s("w"))).expect("small");
        assert_eq!((at(&d, 1), at(&d, 4)), (Some(1), Some(8)));
        let larger = s("h").maximum(&n(3)).expect("small");
        assert_eq!((at(&larger, 1), at(&larger, 4)), (Some(3), Some(4)));
        let square = s("h").mul(&s("h")).expect("small");
        assert_eq!(at(&square, i64::MAX), None);
        let ratio = s("a").div_floor(&s("b")).expect("small");
        assert_eq!(at(&ratio, 0), None);
    }

    #[test]
    fn extremes_are_refused_not_wrapped() {
        assert_eq!(n(i64::MIN).div_floor(&n(-1)), None);
        assert_eq!(n(i64::MIN).div_trunc(&n(-1)), None);
        assert_eq!(n(i64::MAX).add(&n(1)), None);
        assert_eq!(s("h").div_floor(&n(0)), None);
        assert_eq!(n(5).div_trunc(&n(0)), None);
        assert_eq!(n(i64::MIN).neg(), None);
        assert_eq!(s("h").mul(&n(i64::MIN)).unwrap().neg(), None);
        assert_eq!(n(-7).div_trunc(&n(2)), Some(n(-3)));
        assert_eq!(n(-7).div_floor(&n(2)), Some(n(-4)));
        assert_eq!(n(-7).div_ceil(&n(2)), Some(n(-3)));
    }

    #[test]
    fn expressions_stay_small() {
        let mut d = s("a0");
        for i in 1..200 {
            match d.add(&s(&format!("a{i}"))) {
                Some(next) => d = next,
                None => {
                    assert_eq!(i, i64::from(MAX_WEIGHT));
                    return;
                }
            }
        }
        panic!("no limit");
    }

    #[test]
    fn powers_stay_small() {
        let mut d = s("a");
        let doubled = (0..20).try_fold((), |(), _| {
            d = d.mul(&d)?;
            Some(())
        });
        assert_eq!(doubled, None);
    }

    #[test]
    fn bounds_decide_minimum_and_maximum() {
        let h = s("h");
        let next = h.add(&n(1)).unwrap();
        assert_eq!(h.maximum(&next), Some(next.clone()));
        assert_eq!(h.minimum(&next), Some(h.clone()));
        assert_eq!(h.maximum(&n(0)), Some(h.clone()));
        let cut = h.minimum(&n(5)).unwrap();
        assert_eq!(cut.to_string(), "min(5, h)");
        assert_eq!((cut.lower_bound(), cut.upper_bound()), (Some(0), Some(5)));
        assert_eq!(h.equals(&n(-1)), Some(false));
        assert_eq!(h.equals(&n(4)), None);
        assert_eq!(h.less(&n(0)), Some(false));
    }

    #[test]
    fn broadcasting_knows_ones_and_cuts() {
        let h = s("h");
        assert_eq!(h.broadcast(&n(1)), Some(h.clone()));
        assert_eq!(h.broadcast(&n(7)), Some(n(7)));
        assert_eq!(n(3).broadcast(&n(2)), None);
        let cut = h.minimum(&n(512)).unwrap();
        assert_eq!(cut.broadcast(&h), Some(h.clone()));
        assert_eq!(h.broadcast(&s("w")).unwrap(), s("w").broadcast(&h).unwrap());
    }

    #[test]
    fn unknown_numbers_may_be_negative() {
        let any = SymDim::from(Symbol::Number(1));
        assert!(!any.is_not_negative());
        assert_eq!(any.div_trunc(&n(2)), None);
        assert!(SymDim::from(Symbol::Size(1)).is_not_negative());
    }
}
