"""One function in every language, with the tokens that a reader sees in it."""

FUNCTIONS = {
    "java": "@Override\npublic int f(final int a) {\n    String s = \"x\\n\" + 'c' + 1.5f; // hé\n"
    "    return this.a >= 0x1F ? true : a++;\n}",
    "python": 'def f(self, *a, b=None):\n    """Doc."""\n    x = f"a {b!r:>{w}} c" + \\\n'
    '        rb"x"\n'
    "    # c\n    return not x in [1, 2.0, True]",
    "javascript": "async function f(a, {b}) {\n  const r = /ab+c/g, t = `x ${a + 1} y`;\n"
    '  this.#p = "é";\n  return typeof a === undefined ? null : new A(...b);\n}',
    "php": 'public static function f(?int $a, string $b = null): array {\n  $x = "a $b {$a->c[1]}";'
    "\n  return ['k' => $this->x, A::B, <<<EOT\nhi $x\nEOT\n];\n}",
    "ruby": 'def self.f(a, b: 1, *c)\n  @x = "a #{b + 1} c"\n  y = :sym\n  s = <<~EOS\n    t #{a}\n'
    "  EOS\n  return nil unless a =~ /re/ && true\nend",
    "go": "func (t *T) F(a int, b ...string) error {\n\tx := `raw` + \"s\" + string('c')\n"
    "\tfor i := range b {\n\t\tgo f(i)\n\t}\n\treturn nil\n}",
    "c": 'static int *f(const char *a) {\n  int x = sizeof(*a) + 0x1f;\n#ifdef A\n  x->y = "s";\n'
    "#endif\n  return (size_t)NULL;\n}",
    "rust": "pub fn f<'a, T: Clone>(mut self, a: &'a str) -> u32 {\n  /// doc\n"
    "  match a {\n    _ => 1_u32 as usize,\n    'c' => b\"s\",\n  }\n}",
}

KEYWORDS = {  # by hand
    "java": "public int final int return this true",
    "python": "def None return not in True",
    "javascript": "async function const this return typeof undefined null new",
    "php": "public static function int string null array return",
    "ruby": "def self return nil unless true end",
    "go": "func for range go return nil",
    "c": "static int const char int sizeof #ifdef #endif return size_t NULL",
    "rust": "pub fn mut self str u32 match _ as usize",
}
STRINGS = {
    "java": ['"x\\n"', "'c'"],
    "python": ['"""Doc."""', 'f"a ', ' c"', 'rb"x"'],
    "javascript": ["/ab+c/g", "`x ", " y`", '"é"'],
    "php": ['"a ', " {", '}"', "'k'", "<<<EOT\nhi ", "\nEOT"],
    "ruby": ['"a ', ' c"', ":sym", "<<~EOS", "\n    t ", "\n  EOS", "/re/"],
    "go": ["`raw`", '"s"', "'c'"],
    "c": ['"s"'],
    "rust": ["'c'", 'b"s"'],
}
NUMBERS = {
    "java": "1.5f 0x1F",
    "python": "1 2.0",
    "javascript": "1",
    "php": "1",
    "ruby": "1 1",
    "go": "",
    "c": "0x1f",
    "rust": "1_u32",
}
