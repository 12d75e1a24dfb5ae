export default {
  en: {
    close: "Close",
    cancel: "Cancel",
    dismiss: "Dismiss",
    reset: "Back to the default: {{label}}",
    notNumber: "This is not a number.",
    notWhole: "A whole number is needed.",
    tooSmall: "At least {{min}}.",
    tooLarge: "At most {{max}}.",
  },
  zh: {
    close: "关闭",
    cancel: "取消",
    dismiss: "知道了",
    reset: "恢复默认值：{{label}}",
    notNumber: "这不是数字。",
    notWhole: "请填写整数。",
    tooSmall: "不能小于 {{min}}。",
    tooLarge: "不能大于 {{max}}。",
  },
};
