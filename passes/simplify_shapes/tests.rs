//! Tests of `simplify-shapes`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]

use super::*;
use crate::testing::{check, refused, unchanged};

#[test]
fn copied_sizes_become_zero_in_a_reshape() {
    check::<SimplifyShapes>(
        "{}",
        r#"<ir_version: 8, opset_import: ["": 17]>
        g (float[n,t,12] x) => (float[n,t,3,4] y)
        <int64[1] zero = {0}, int64[1] one = {1}, int64[1] three = {3}, int64[1] four = {4}>
        {
          s = Shape (x)
          a = Gather <axis = 0> (s, zero)
          b = Gather <axis = 0> (s, one)
          c = Concat <axis = 0> (a, b, three, four)
          y = Reshape (x, c)
        }"#,
        r#"<ir_version: 8, opset_import: ["": 17]>
        g (float[n,t,12] x) => (float[n,t,3,4] y)
        <int64[4] y_shape = {0, 0, 3, 4}>
        {
          y = Reshape (x, y_shape)
        }"#,
    );
}

#[test]
fn a_lone_size_becomes_minus_one() {
    check::<SimplifyShapes>(
        "{}",
        r#"<ir_version: 8, opset_import: ["": 17]>
        g (float[n,4,3] x, float[n,12] z) => (float[n,12] y)
        <int64[1] zero = {0}, int64[1] twelve = {12}>
        {
          s = Shape (z)
          a = Gather <axis = 0> (s, zero)
          c = Concat <axis = 0> (a, twelve)
          y = Reshape <allowzero = 1> (x, c)
        }"#,
        r#"<ir_version: 8, opset_import: ["": 17]>
        g (float[n,4,3] x, float[n,12] z) => (float[n,12] y)
        <int64[2] y_shape = {-1, 12}>
        {
          y = Reshape (x, y_shape)
        }"#,
    );
}

#[test]
fn a_size_in_the_middle_is_unsqueezed_around() {
    check::<SimplifyShapes>(
        "{}",
        r#"<ir_version: 7, opset_import: ["": 12]>
        g (float[n,t,8] x) => (float[n,1,t,8] y)
        <int64[1] zero = {0}, int64[1] one = {1}, int64[1] eight = {8}>
        {
          s = Shape (x)
          b = Gather <axis = 0> (s, one)
          c = Concat <axis = 0> (zero, one, b, eight)
          y = Reshape (x, c)
        }"#,
        r#"<ir_version: 7, opset_import: ["": 12]>
        g (float[n,t,8] x) => (float[n,1,t,8] y)
        {
          y = Unsqueeze <axes = [1]> (x)
        }"#,
    );
}

#[test]
fn two_sizes_that_change_places_are_left() {
    // Were n 0, a target of {0, -1, 3} would not work, but {0, t, 3} does.
    refused::<SimplifyShapes>(
        "{}",
        r#"<ir_version: 8, opset_import: ["": 17]>
        g (float[n,3,t] x) => (float[n,t,3] y)
        <int64[1] zero = {0}, int64[1] two = {2}, int64[1] three = {3}>
        {
          s = Shape (x)
          a = Gather <axis = 0> (s, zero)
          b = Gather <axis = 0> (s, two)
          c = Concat <axis = 0> (a, b, three)
          y = Reshape (x, c)
        }"#,
        "symbolic-shape",
    );
    // Nothing is known of a target that is data.
    unchanged::<SimplifyShapes>(
        "{}",
        r#"<ir_version: 8, opset_import: ["": 17]>
        g (float[n,3,t] x, int64[3] c) => (float[a,b,d] y)
        {
          y = Reshape (x, c)
        }"#,
    );
}

#[test]
fn an_expand_keeps_what_it_adds() {
    check::<SimplifyShapes>(
        "{}",
        r#"<ir_version: 8, opset_import: ["": 17]>
        g (float[n,1] x) => (float[n,5] y, float[n,1] z)
        <int64[1] zero = {0}, int64[1] one = {1}, int64[1] five = {5}>
        {
          s = Shape (x)
          a = Gather <axis = 0> (s, zero)
          c = Concat <axis = 0> (a, five)
          y = Expand (x, c)
          h = Relu (x)
          d = Concat <axis = 0> (a, one)
          e = Expand (h, d)
          z = Neg (e)
        }"#,
        r#"<ir_version: 8, opset_import: ["": 17]>
        g (float[n,1] x) => (float[n,5] y, float[n,1] z)
        <int64[2] y_shape = {1, 5}>
        {
          y = Expand (x, y_shape)
          h = Relu (x)
          z = Neg (h)
        }"#,
    );
    refused::<SimplifyShapes>(
        "{}",
        r#"<ir_version: 8, opset_import: ["": 17]>
        g (float[1,3] x, float[n] w) => (float[n,3] y)
        <int64[1] three = {3}>
        {
          s = Shape (w)
          c = Concat <axis = 0> (s, three)
          y = Expand (x, c)
        }"#,
        "symbolic-shape",
    );
}

#[test]
fn a_slice_to_the_end_ends_there() {
    check::<SimplifyShapes>(
        "{}",
        r#"<ir_version: 8, opset_import: ["": 17]>
        g (float[n,t] x) => (float[n,u] y)
        <int64[1] one = {1}, int64[1] two = {2}>
        {
          s = Shape (x)
          e = Gather <axis = 0> (s, one)
          y = Slice (x, two, e, one)
        }"#,
        r#"<ir_version: 8, opset_import: ["": 17]>
        g (float[n,t] x) => (float[n,u] y)
        <int64[1] one = {1}, int64[1] two = {2}, int64[1] y_ends = {9223372036854775807}>
        {
          y = Slice (x, two, y_ends, one)
        }"#,
    );
}

#[test]
fn sizes_that_double_are_scales() {
    check::<SimplifyShapes>(
        "{}",
        r#"<ir_version: 8, opset_import: ["": 17]>
        g (float[n,3,h,w] x) => (float[n,3,a,b] y)
        <int64[4] k = {1, 1, 2, 2}>
        {
          s = Shape (x)
          m = Mul (s, k)
          y = Resize <mode = "nearest"> (x, "", "", m)
        }"#,
        r#"<ir_version: 8, opset_import: ["": 17]>
        g (float[n,3,h,w] x) => (float[n,3,a,b] y)
        <float[4] y_scales = {1, 1, 2, 2}>
        {
          y = Resize <mode = "nearest"> (x, "", y_scales)
        }"#,
    );
}

#[test]
fn sizes_are_computed_once() {
    check::<SimplifyShapes>(
        "{}",
        r#"<ir_version: 8, opset_import: ["": 17]>
        g (float[n,4] x, float[1,4] w) => (float[a,4] y, float[b,4] z)
        <int64[1] zero = {0}, int64[1] four = {4}>
        {
          h = Relu (x)
          s = Shape (x)
          a = Gather <axis = 0> (s, zero)
          c = Concat <axis = 0> (a, four)
          y = Expand (w, c)
          s2 = Shape (h)
          z = Expand (w, s2)
        }"#,
        r#"<ir_version: 8, opset_import: ["": 17]>
        g (float[n,4] x, float[1,4] w) => (float[a,4] y, float[b,4] z)
        {
          s = Shape (x)
          y = Expand (w, s)
          z = Expand (w, s)
        }"#,
    );
}
