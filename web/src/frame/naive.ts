/** Our tokens for the component kit, which computes with colours and so needs them as values. */
import type { GlobalThemeOverrides } from 'naive-ui'

export function naiveTokens(theme: 'light' | 'dark'): GlobalThemeOverrides {
  const dark = theme === 'dark'
  return {
    common: {
      primaryColor: dark ? '#8b93f8' : '#4f46e5',
      primaryColorHover: dark ? '#a5adff' : '#4338ca',
      primaryColorPressed: dark ? '#a5adff' : '#3730a3',
      borderRadius: '8px',
      fontFamily: 'var(--font)',
      fontSize: '14px',
      popoverColor: dark ? '#191c20' : '#ffffff',
      textColor2: dark ? '#e7e9ec' : '#191d24',
    },
  }
}
