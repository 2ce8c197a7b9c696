/** Words of a holder's pages. */
export default {
  mine: {
    title: 'My coupons', available: 'Available', locked: 'Locked', used: 'Used',
    empty: { available: 'No coupon is waiting for you. When you are given one, it appears here.', locked: 'No coupon is being used at the moment.', used: 'Coupons that you have used up appear here.' },
    use: 'Use now', resume: 'Go on', uses: '{left} of {all} uses left', usedAt: 'Used {when}', validUntil: 'Valid until {day}', startsOn: 'From {day} on',
    expired: 'Expired', notActive: 'Not running', notStarted: 'Not begun', over: 'Over', withdrawn: 'Withdrawn', inUse: 'In use until {time}',
    inUseElsewhere: 'Open on another device, free in {left}', free: 'Give it back',
    actingFor: 'You act for {name}', stopActing: 'Back to the administration', account: 'Account', code: 'Code {code}', disabled: 'This account is disabled: nothing can be used.',
  },
  redeem: {
    title: 'Use the coupon of {book}', show: 'Show this at the till', left: '{time} left', hold: 'Hold to redeem', holding: 'Keep holding…', press: 'Hold the button for a moment, or press Enter.', busy: 'Redeeming…',
    confirm: 'Redeem it now? This cannot be undone here.', yes: 'Yes, redeem', no: 'Not yet', notNow: 'Not now', more: 'Add time', moreFor: '+{minutes} min', renewed: 'Time added.',
    done: 'Redeemed', doneText: 'At {time}. {left}', none: 'That was its last use.', some: 'One use is left. | {n} uses are left.',
    expired: 'The time is over', expiredText: 'Nothing was used. The coupon is back among the available ones.', reopen: 'Open it again', finish: 'Done', qr: 'QR code of {code}', noLock: 'This coupon needs no hold: it is redeemed at once.',
    lowTime: 'Less than 30 seconds left.',
  },
  account: { title: 'Your account', name: 'Name', email: 'E-mail', password: 'Change the password', old: 'Current password', new: 'New password', saved: 'Saved.', changed: 'Changed. Every other session has ended.', hint: '10 characters or more, not easily guessed.' },
}
